/* Restores pieces of coded files on microcontrollers; docs/internals/coded-files.md is their layout.
 *
 *   size_t taken = graphopt_piece(piece, length, out, room, &written, &memory);
 *
 * C99, no malloc, no recursion, no library but the standard's headers. What is damaged gives 0, and nothing beyond `out` + `room` or
 * `piece` + `length` is touched. Integers of restored tensors are little-endian, whatever the processor is.
 */
#ifndef GRAPHOPT_DECODER_H
#define GRAPHOPT_DECODER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef GRAPHOPT_LANES
#define GRAPHOPT_LANES 8192 /* of rANS; files stored with "huffman" need 1 */
#endif

struct graphopt_huffman { /* codes in canonical order */
  uint16_t counts[16], symbols[288];
};

struct graphopt_stream { /* gives one byte after another */
  const uint8_t *at, *end;
  uint32_t bits, held;                 /* of deflate */
  int kind, last, open, byte;          /* byte: of a constant stream */
  uint32_t stored;                     /* bytes left of a block that is not coded */
  struct graphopt_huffman literals;
  uint32_t lanes, lane;                /* of rANS */
  uint16_t starts[257];
  uint8_t used[256], of_slot[4096];
  uint32_t states[GRAPHOPT_LANES];
};

struct graphopt_memory { /* what decoding takes beside the output: uninitialized, for one call at a time */
  struct graphopt_stream first, second;
  struct graphopt_huffman distances;
};

/* The bytes of the piece, 0 where it is damaged or `out` is too small; `written` gets the bytes that it restores. */
size_t graphopt_piece(const uint8_t *piece, size_t length, uint8_t *out, size_t room, size_t *written,
                      struct graphopt_memory *memory);

#ifdef __cplusplus
}
#endif
#endif
