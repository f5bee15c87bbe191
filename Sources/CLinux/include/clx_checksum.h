// The sum that the Internet's checksums are made of (RFC 1071), over bytes that another party may be changing. Caller:
// SwitchBackend.
#pragma once

#include <stdint.h>

/// The one's complement sum of the 16-bit words of `count` bytes as they lie in memory, folded; an odd byte at the end counts as
/// the first of a word.
static inline uint16_t clx_checksum(const void *bytes, unsigned long count) {
  const unsigned char *at = bytes;
  uint64_t sum = 0;
  // Four words at a time: the carries of 32-bit halves stay below 2^63 for any count that fits in memory.
  while (count >= 8) {
    uint64_t words;
    __builtin_memcpy(&words, at, 8);
    sum += (words & 0xffffffffu) + (words >> 32);
    at += 8;
    count -= 8;
  }
  while (count >= 2) {
    uint16_t word;
    __builtin_memcpy(&word, at, 2);
    sum += word;
    at += 2;
    count -= 2;
  }
  if (count) sum += *at;
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return (uint16_t)sum;
}
