/* See decoder.h. Deflate follows RFC 1951 and decodes bit by bit in canonical order, as Mark Adler's puff does: small, not fast. */
#include "decoder.h"

#include <string.h>

enum { RAW, HUFFMAN, ANS, CONSTANT, SPARSE };
enum { PLAIN, PLANES, TABLE, BITS, BYTES };
enum { TOTAL = 4096, LEAST = 1 << 16, SKIP = 255, END = 256, DAMAGED = -1 };

typedef struct graphopt_stream Stream;
typedef struct graphopt_huffman Huffman;

/* ---- Bytes and numbers ------------------------------------------------------------------------------------------- */

typedef struct {
  const uint8_t *at, *end;
} Reader;

static int byte_of(Reader *r) { return r->at < r->end ? *r->at++ : DAMAGED; }

static int varint(Reader *r, uint32_t most, uint32_t *found) {
  uint64_t number = 0;
  for (int place = 0; place < 5; ++place) {
    int byte = byte_of(r);
    if (byte < 0) return 0;
    number |= (uint64_t)(byte & 0x7F) << (7 * place);
    if (byte < 0x80) {
      *found = (uint32_t)number;
      return number <= most;
    }
  }
  return 0;
}

/* ---- Deflate ----------------------------------------------------------------------------------------------------- */

static int bits_of(Stream *s, int count) {
  while ((int)s->held < count) {
    if (s->at == s->end) return DAMAGED;
    s->bits |= (uint32_t)*s->at++ << s->held;
    s->held += 8;
  }
  int found = (int)(s->bits & ((1u << count) - 1));
  s->bits >>= count;
  s->held -= (uint32_t)count;
  return found;
}

static int symbol_of(Stream *s, const Huffman *h) {
  int code = 0, first = 0, index = 0;
  for (int length = 1; length < 16; ++length) {
    int bit = bits_of(s, 1);
    if (bit < 0) return DAMAGED;
    code |= bit;
    int count = h->counts[length];
    if (code - count < first) return h->symbols[index + code - first];
    index += count;
    first = (first + count) << 1;
    code <<= 1;
  }
  return DAMAGED;
}

static int build(Huffman *h, const uint8_t *lengths, int count) {
  uint16_t offsets[16];
  int left = 1;
  memset(h->counts, 0, sizeof h->counts);
  for (int n = 0; n < count; ++n) ++h->counts[lengths[n]];
  h->counts[0] = 0;
  for (int length = 1; length < 16; ++length) {
    left = (left << 1) - h->counts[length];
    if (left < 0) return 0; /* more codes than there are */
  }
  offsets[1] = 0;
  for (int length = 1; length < 15; ++length) offsets[length + 1] = (uint16_t)(offsets[length] + h->counts[length]);
  for (int n = 0; n < count; ++n)
    if (lengths[n]) h->symbols[offsets[lengths[n]]++] = (uint16_t)n;
  return 1;
}

static int fixed(Stream *s, Huffman *distances) {
  uint8_t lengths[288];
  for (int n = 0; n < 288; ++n) lengths[n] = n < 144 ? 8 : n < 256 ? 9 : n < 280 ? 7 : 8;
  if (!build(&s->literals, lengths, 288)) return 0;
  memset(lengths, 5, 30);
  return build(distances, lengths, 30);
}

static int dynamic(Stream *s, Huffman *distances) {
  static const uint8_t order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  uint8_t lengths[320] = {0};
  int literals = bits_of(s, 5), others = bits_of(s, 5), codes = bits_of(s, 4), n = 0;
  if (literals < 0 || others < 0 || codes < 0 || literals > 29 || others > 29) return 0;
  literals += 257, others += 1;
  for (int k = 0; k < codes + 4; ++k) {
    int length = bits_of(s, 3);
    if (length < 0) return 0;
    lengths[order[k]] = (uint8_t)length;
  }
  if (!build(distances, lengths, 19)) return 0;
  memset(lengths, 0, sizeof lengths);
  while (n < literals + others) {
    int symbol = symbol_of(s, distances), length = 0, repeat = 1;
    if (symbol < 0) return 0;
    if (symbol < 16) {
      length = symbol;
    } else {
      if (symbol == 16 && !n) return 0;
      length = symbol == 16 ? lengths[n - 1] : 0;
      int extra = bits_of(s, symbol == 16 ? 2 : symbol == 17 ? 3 : 7);
      if (extra < 0) return 0;
      repeat = extra + (symbol == 18 ? 11 : 3);
    }
    if (n + repeat > literals + others) return 0;
    while (repeat--) lengths[n++] = (uint8_t)length;
  }
  return lengths[END] && build(&s->literals, lengths, literals) && build(distances, lengths + literals, others);
}

/* Opens the next block that has symbols; 0 where it is damaged, or none follows. */
static int block(Stream *s, Huffman *distances) {
  if (s->last) return 0;
  s->last = bits_of(s, 1);
  int type = bits_of(s, 2);
  if (s->last < 0 || type < 0 || type == 3) return 0;
  s->open = 1;
  if (type == 1) return fixed(s, distances);
  if (type == 2) return dynamic(s, distances);
  s->at -= s->held / 8; /* whole bytes that were read ahead */
  s->bits = s->held = 0;
  if (s->end - s->at < 4) return 0;
  s->stored = s->at[0] | (uint32_t)s->at[1] << 8;
  int fits = (s->stored ^ 0xFFFF) == (s->at[2] | (uint32_t)s->at[3] << 8);
  s->at += 4;
  s->open = 2;
  return fits && s->stored <= (uint32_t)(s->end - s->at);
}

/* The next symbol, 256 at the end of the stream. */
static int next_deflated(Stream *s, Huffman *distances) {
  for (;;) {
    if (!s->open) {
      if (s->last) return END;
      if (!block(s, distances)) return DAMAGED;
    }
    if (s->open == 2) {
      if (s->stored) {
        --s->stored;
        return *s->at++;
      }
      s->open = 0;
    } else {
      int symbol = symbol_of(s, &s->literals);
      if (symbol != END) return symbol;
      s->open = 0;
    }
  }
}

static int inflate(Stream *s, Huffman *distances, uint8_t *out, size_t size) {
  static const uint16_t bases[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                     31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
  static const uint16_t ways[30] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,   65,    97,    129,
                                    193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
  size_t at = 0;
  for (;;) {
    int symbol = next_deflated(s, distances);
    if (symbol == END) return at == size && s->at == s->end;
    if (symbol < 0) return 0;
    if (symbol < END) {
      if (at == size) return 0;
      out[at++] = (uint8_t)symbol;
      continue;
    }
    if ((symbol -= 257) > 28) return 0;
    int extra = bits_of(s, symbol < 8 || symbol == 28 ? 0 : symbol / 4 - 1);
    int place = symbol_of(s, distances);
    if (extra < 0 || place < 0 || place > 29) return 0;
    int more = bits_of(s, place < 4 ? 0 : place / 2 - 1);
    size_t length = (size_t)bases[symbol] + (size_t)extra, back = (size_t)ways[place] + (size_t)more;
    if (more < 0 || back > at || length > size - at) return 0;
    for (; length; --length, ++at) out[at] = out[at - back];
  }
}

/* ---- Streams ----------------------------------------------------------------------------------------------------- */

static int open_ans(Stream *s, uint32_t count) {
  Reader r = {s->at, s->end};
  int kinds = byte_of(&r) + 1, sum = 0;
  if (kinds < 2 || r.end - r.at < kinds) return 0;
  memcpy(s->used, r.at, (size_t)kinds);
  r.at += kinds;
  for (int n = 0; n < kinds; ++n) {
    uint32_t frequency;
    if (!varint(&r, TOTAL, &frequency) || !frequency || sum + (int)frequency > TOTAL) return 0;
    if (n && s->used[n] <= s->used[n - 1]) return 0;
    memset(s->of_slot + sum, n, frequency);
    s->starts[n] = (uint16_t)sum;
    sum += (int)frequency;
  }
  s->starts[kinds] = TOTAL;
  if (sum != TOTAL || !varint(&r, GRAPHOPT_LANES, &s->lanes) || !s->lanes || s->lanes > count) return 0;
  if ((size_t)(r.end - r.at) < 4 * (size_t)s->lanes || (r.end - r.at) % 2) return 0;
  for (uint32_t n = 0; n < s->lanes; ++n, r.at += 4) {
    s->states[n] = r.at[0] | (uint32_t)r.at[1] << 8 | (uint32_t)r.at[2] << 16 | (uint32_t)r.at[3] << 24;
    if (s->states[n] < LEAST) return 0;
  }
  s->at = r.at;
  s->lane = 0;
  return 1;
}

static int next_ans(Stream *s) {
  uint32_t x = s->states[s->lane], slot = x % TOTAL;
  int n = s->of_slot[slot];
  x = (uint32_t)(s->starts[n + 1] - s->starts[n]) * (x / TOTAL) + slot - s->starts[n];
  if (x < LEAST) {
    if (s->end - s->at < 2) return DAMAGED;
    x = x << 16 | s->at[0] | (uint32_t)s->at[1] << 8;
    s->at += 2;
  }
  s->states[s->lane] = x;
  if (++s->lane == s->lanes) s->lane = 0;
  return s->used[n];
}

/* Opens a stream of `count` bytes of any kind but sparse, and moves the reader behind it. */
static int open_stream(Stream *s, Reader *r, uint32_t count, int kind) {
  uint32_t length = count;
  s->kind = kind;
  s->bits = s->held = s->stored = 0;
  s->last = s->open = 0;
  if (kind == CONSTANT) return (s->byte = byte_of(r)) >= 0;
  if (kind != RAW && kind != HUFFMAN && kind != ANS) return 0;
  if (kind != RAW && !varint(r, UINT32_MAX, &length)) return 0;
  if (length > (size_t)(r->end - r->at)) return 0;
  s->at = r->at;
  s->end = r->at += length;
  return kind != ANS || open_ans(s, count);
}

static int next(Stream *s, Huffman *distances) {
  switch (s->kind) {
    case RAW: return s->at < s->end ? *s->at++ : DAMAGED;
    case HUFFMAN: return next_deflated(s, distances);
    case ANS: return next_ans(s);
    default: return s->byte;
  }
}

/* Whether nothing is left. */
static int done(Stream *s, Huffman *distances) {
  if (s->kind == HUFFMAN) return next_deflated(s, distances) == END && s->at == s->end;
  if (s->kind == ANS)
    for (uint32_t n = 0; n < s->lanes; ++n)
      if (s->states[n] != LEAST) return 0;
  return s->kind == CONSTANT || s->at == s->end;
}

typedef struct { /* where symbols go: bytes `width` apart, entries of a table, or codes of so many bits */
  uint8_t *out;
  const uint8_t *table;
  uint32_t entries, width, bits;
  size_t size;
} Sink;

static int put(const Sink *sink, uint32_t n, int symbol) {
  if (symbol < 0 || symbol > 255) return 0;
  if (sink->table) {
    if ((uint32_t)symbol >= sink->entries) return 0;
    memcpy(sink->out + (size_t)n * sink->width, sink->table + (size_t)symbol * sink->width, sink->width);
  } else if (sink->bits) {
    size_t first = (size_t)n * sink->bits;
    uint32_t code = (uint32_t)symbol << (first % 8);
    if (symbol >> sink->bits) return 0;
    sink->out[first / 8] |= (uint8_t)code;
    if (code >> 8) sink->out[first / 8 + 1] |= (uint8_t)(code >> 8);
  } else {
    sink->out[(size_t)n * sink->width] = (uint8_t)symbol;
  }
  return 1;
}

static int sparse(Reader *r, uint32_t count, const Sink *sink, struct graphopt_memory *m) {
  Stream *gaps = &m->first, *values = &m->second;
  Reader all = *r;
  int filler = byte_of(r);
  uint32_t steps, n = 0, found = 0;
  if (filler < 0 || !varint(r, count, &steps)) return 0;
  all = *r; /* values follow gaps, whose number says how many there are: gaps are gone through twice */
  for (int turn = 0; turn < 2; ++turn) {
    *r = all;
    if (!open_stream(gaps, r, steps, byte_of(r))) return 0;
    if (turn && !open_stream(values, r, found, byte_of(r))) return 0;
    for (uint32_t step = 0; step < steps; ++step) {
      int gap = next(gaps, &m->distances);
      if (gap < 0 || gap > 255) return 0;
      if (!turn) {
        found += gap != SKIP;
        continue;
      }
      if ((uint32_t)gap + (gap != SKIP) > count - n) return 0;
      for (int left = gap; left; --left)
        if (!put(sink, n++, filler)) return 0;
      if (gap != SKIP && !put(sink, n++, next(values, &m->distances))) return 0;
    }
    if (!done(gaps, &m->distances)) return 0;
  }
  while (n < count)
    if (!put(sink, n++, filler)) return 0;
  return done(values, &m->distances);
}

static int stream(Reader *r, uint32_t count, const Sink *sink, struct graphopt_memory *m) {
  int kind = byte_of(r);
  if (kind == SPARSE) return sparse(r, count, sink, m);
  if (!open_stream(&m->first, r, count, kind)) return 0;
  for (uint32_t n = 0; n < count; ++n)
    if (!put(sink, n, next(&m->first, &m->distances))) return 0;
  return done(&m->first, &m->distances);
}

/* ---- Pieces ------------------------------------------------------------------------------------------------------ */

static int numbers(Reader *r, int form, uint8_t *out, uint32_t size, struct graphopt_memory *m) {
  int width = byte_of(r);
  Sink sink = {out, NULL, 0, (uint32_t)width, 0, size};
  if ((width != 1 && width != 2 && width != 4 && width != 8) || size % (uint32_t)width) return 0;
  if (form == PLANES) {
    for (; sink.out < out + width; ++sink.out)
      if (!stream(r, size / (uint32_t)width, &sink, m)) return 0;
    return 1;
  }
  sink.entries = (uint32_t)byte_of(r) + 1;
  if (!sink.entries || sink.entries * sink.width > (size_t)(r->end - r->at)) return 0;
  sink.table = r->at;
  r->at += sink.entries * sink.width;
  return stream(r, size / sink.width, &sink, m);
}

static int codes(Reader *r, uint8_t *out, uint32_t size, struct graphopt_memory *m) {
  int bits = byte_of(r);
  Sink sink = {out, NULL, 0, 1, (uint32_t)bits, size};
  if (bits < 1 || bits > 7) return 0;
  memset(out, 0, size);
  return stream(r, (uint32_t)(8 * (uint64_t)size / (uint32_t)bits), &sink, m);
}

size_t graphopt_piece(const uint8_t *piece, size_t length, uint8_t *out, size_t room, size_t *written,
                      struct graphopt_memory *m) {
  Reader r = {piece, piece + length};
  uint32_t size;
  int form = byte_of(&r), fits = 0;
  if (form < 0 || !varint(&r, 1u << 24, &size) || size > room) return 0;
  if (form == PLAIN) {
    fits = open_stream(&m->first, &r, size, HUFFMAN) && inflate(&m->first, &m->distances, out, size);
  } else if (form == BYTES) {
    fits = size <= (size_t)(r.end - r.at);
    if (fits) memcpy(out, r.at, size), r.at += size;
  } else if (form == BITS) {
    fits = codes(&r, out, size, m);
  } else if (form == PLANES || form == TABLE) {
    fits = numbers(&r, form, out, size, m);
  }
  *written = fits ? size : 0;
  return fits ? (size_t)(r.at - piece) : 0;
}
