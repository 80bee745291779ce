// Runs a compiled `model.so` with TVM's runtime and nothing else, so that an emulated CPU starts in a second.
//
//     run_library LIBRARY CALLS OUTPUTS INPUT...        INPUT = file:dtype:2,3,8,8
//
// A file holds the input of one call after another, as raw numbers; after the last the calls begin again at the first. The
// outputs of each first pass go to the file OUTPUTS, call by call; their types and shapes are printed, one a line.

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

constexpr int64_t POOLED_ALLOCATOR = 2, ONE_THREAD = 1, BIG_CORES = 1;  // as TVM's virtual machine numbers them

struct Aligned {
  void AllocData(DLTensor* tensor) { tensor->data = std::aligned_alloc(64, (ffi::GetDataSize(*tensor) + 63) / 64 * 64); }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

struct Input {
  std::vector<char> bytes;
  ffi::Tensor tensor;

  explicit Input(const std::string& description) {
    std::istringstream parts(description);
    std::string path, dtype, sizes, size;
    std::getline(parts, path, ':'), std::getline(parts, dtype, ':'), std::getline(parts, sizes, ':');
    std::vector<int64_t> shape;
    for (std::istringstream stream(sizes); std::getline(stream, size, ',');) shape.push_back(std::stoll(size));
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    bytes.assign(std::istreambuf_iterator<char>(file), {});
    tensor = ffi::Tensor::FromNDAlloc(Aligned(), ffi::Shape(shape), ffi::StringToDLDataType(dtype), DLDevice{kDLCPU, 0});
    if (bytes.empty() || bytes.size() % size_of()) throw std::runtime_error(path + " does not hold whole inputs");
  }

  size_t size_of() const { return ffi::GetDataSize(tensor); }
  size_t count() const { return bytes.size() / size_of(); }
  void take(size_t number) { std::memcpy(tensor.data_ptr(), &bytes[number % count() * size_of()], size_of()); }
};

void write(const ffi::Tensor& tensor, std::ofstream& file, bool describe) {
  file.write(static_cast<const char*>(tensor.data_ptr()), static_cast<std::streamsize>(ffi::GetDataSize(tensor)));
  if (!describe) return;
  std::printf("%s ", std::string(ffi::DLDataTypeToString(tensor.dtype())).c_str());
  for (int64_t size : tensor.shape()) std::printf("%ld,", static_cast<long>(size));
  std::printf("\n");
}

int main(int count, char** arguments) {
  if (count < 5) return std::fprintf(stderr, "run_library LIBRARY CALLS OUTPUTS INPUT...\n"), 2;
  try {
    std::vector<Input> inputs(arguments + 4, arguments + count);
    ffi::Module machine = (*ffi::Module::LoadFromFile(arguments[1])->GetFunction("vm_load_executable"))().cast<ffi::Module>();
    ffi::Function::GetGlobalRequired("runtime.config_threadpool")(BIG_CORES, ONE_THREAD);
    (*machine->GetFunction("vm_initialization"))(static_cast<int64_t>(kDLCPU), int64_t{0}, POOLED_ALLOCATOR,
                                                 static_cast<int64_t>(kDLCPU), int64_t{0}, POOLED_ALLOCATOR);
    ffi::Function model = *machine->GetFunction("main");
    std::ofstream file(arguments[3], std::ios::binary);
    const size_t calls = std::stoul(arguments[2]), first_pass = inputs[0].count();
    for (size_t call = 0; call < calls; ++call) {
      std::vector<ffi::AnyView> given;
      for (Input& input : inputs) input.take(call), given.emplace_back(input.tensor);
      ffi::Any result;
      model.CallPacked(given.data(), static_cast<int32_t>(given.size()), &result);
      if (call >= first_pass) continue;
      if (auto one = result.as<ffi::Tensor>()) write(*one, file, call == 0);
      else for (const ffi::Tensor& output : result.cast<ffi::Array<ffi::Tensor>>()) write(output, file, call == 0);
    }
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
