/* A plugin of qemu that writes how often each block of instructions was executed: a line "executions instructions bytes" for each
 * translation of a block, its machine code in hexadecimal.
 *
 *     qemu-arm -plugin count_blocks.so,to=blocks program...
 *
 * Declared here is what it uses of qemu's plugin interface, whose header Debian does not package (qemu 7 and 8).
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t number);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *instruction);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int operation, void *counter, uint64_t step);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                                  void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*callback)(qemu_plugin_id_t, void *), void *data);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { ADD_U64 = 0 };

struct block {
  struct block *next;
  uint64_t executions;
  size_t instructions, size;
  unsigned char code[];
};
static struct block *blocks;
static char path[4096];

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *translation) {
  size_t count = qemu_plugin_tb_n_insns(translation), size = 0;
  for (size_t i = 0; i < count; ++i) size += qemu_plugin_insn_size(qemu_plugin_tb_get_insn(translation, i));
  struct block *block = calloc(1, sizeof *block + size);
  if (!block) abort();
  block->instructions = count;
  for (size_t i = 0; i < count; ++i) {
    struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(translation, i);
    memcpy(block->code + block->size, qemu_plugin_insn_data(instruction), qemu_plugin_insn_size(instruction));
    block->size += qemu_plugin_insn_size(instruction);
  }
  block->next = blocks;
  blocks = block;
  qemu_plugin_register_vcpu_tb_exec_inline(translation, ADD_U64, &block->executions, 1);
}

static void at_exit(qemu_plugin_id_t id, void *data) {
  FILE *file = fopen(path, "w");
  if (!file) return;
  for (struct block *block = blocks; block; block = block->next) {
    if (!block->executions) continue;
    fprintf(file, "%" PRIu64 " %zu ", block->executions, block->instructions);
    for (size_t i = 0; i < block->size; ++i) fprintf(file, "%02x", block->code[i]);
    fputc('\n', file);
  }
  fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info,
                                                               int count, char **arguments) {
  if (count != 1 || strncmp(arguments[0], "to=", 3) || strlen(arguments[0] + 3) >= sizeof path) return -1;
  strcpy(path, arguments[0] + 3);
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_atexit_cb(id, at_exit, NULL);
  return 0;
}
