"""A run takes each test in one of its two tiers, and the quick one leaves no module unimported."""

import pytest
import tiers

pytest_plugins = ["pytester"]
TESTS = """
import pytest

@pytest.mark.parametrize("n", [1, 2, 3])
def test_cases(n): pass

@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.thorough), pytest.param(2, marks=pytest.mark.slow), 3, 4])
def test_whose_first_case_takes_long(n): pass

@pytest.mark.thorough
def test_thorough(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.many
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_alike(n): pass

class TestOne:
    def test_cases(self): pass
"""


@pytest.fixture
def planted(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setattr(tiers, "modules", lambda: {"graphopt"})
    pytester.makeini(
        "[pytest]\ntestpaths = .\naddopts = -m 'not slow' -p no:xdist\nmarkers =\n  slow\n  thorough\n  many\n"
    )
    pytester.makepyfile(TESTS)
    return pytester


def run(planted: pytest.Pytester, *arguments: str) -> list[str]:
    passed, *others = planted.inline_run("-p", "tiers", *arguments).listoutcomes()
    assert others == [[], []]
    return sorted(report.nodeid.rpartition("::")[2] for report in passed)


@pytest.mark.parametrize(
    ("arguments", "taken"),
    [
        ([], ["test_cases[1]", "test_cases", "test_whose_first_case_takes_long[3]", "test_alike[1]"]),
        (["--tier", "rest"], [
            "test_cases[2]", "test_cases[3]", "test_thorough", "test_alike[4]", "test_alike[6]",
            "test_whose_first_case_takes_long[1]", "test_whose_first_case_takes_long[4]",
        ]),
        (["-k", "test_cases"], ["test_cases[1]", "test_cases[2]", "test_cases[3]", "test_cases"]),
        (["-m", "slow"], ["test_slow", "test_whose_first_case_takes_long[2]"]),
        (["--tier", "quick", "-k", "thorough"], []),
    ],
)  # fmt: skip
def test_each_tier_takes_its_own(planted: pytest.Pytester, arguments: list[str], taken: list[str]) -> None:
    assert run(planted, *arguments) == sorted(taken)


def test_a_file_that_is_named_runs_whole(planted: pytest.Pytester) -> None:
    (file,) = planted.path.glob("test_*.py")
    assert len(run(planted, str(file))) == 14
    assert run(planted, f"{file}::test_cases[3]") == ["test_cases[3]"]


@pytest.mark.parametrize(("arguments", "fails"), [([], True), (["--tier", "rest"], False), (["-k", "cases"], False)])
def test_a_whole_quick_run_fails_that_leaves_a_module_unimported(
    planted: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fails: bool
) -> None:
    monkeypatch.setattr(tiers, "modules", lambda: {"graphopt", "graphopt.utils.left_out"})
    done = planted.inline_run("-p", "tiers", *arguments)
    assert done.ret == (pytest.ExitCode.TESTS_FAILED if fails else pytest.ExitCode.OK)


def test_modules_are_named_as_they_are_imported() -> None:
    assert {
        "graphopt",
        "graphopt.passes.cleanup",
        "graphopt.backends.tvm.build",
        "graphopt.cli.main",
    } <= tiers.modules()
    assert not any(name.startswith(("passes", "backends")) for name in tiers.modules())
