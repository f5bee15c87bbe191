// Reads a packed ring's inflight log that an earlier process left, and puts it in order. Every value in it is checked:
// the region comes from the front-end. Before the ring starts, on its thread.

import CLinux

/// Where a packed ring goes on, and with what.
struct PackedInflightRecovery {
  var unfinished: [PackedInflight.Unfinished] = []
  var freeHead: UInt16 = 0
  /// Where used descriptors go next; nil for a fresh log, which knows no better than SET_VRING_BASE.
  var used: PackedPosition?
  /// Descriptors of the ring that the unfinished requests take.
  var descriptorCount: Int { unfinished.reduce(0) { $0 + $1.descriptors.count } }

  /// `wordInRing` reads a descriptor's second half at a position below the ring's size.
  init(
    _ area: InflightArea, size: UInt16, start: PackedPosition, wordInRing: (UInt16) -> PackedWord
  ) throws(InflightError) {
    let count = area.descriptorCount
    let needed = 32 + 32 * Int(count)
    guard count >= size, area.byteCount >= needed else { throw .tooSmall(bytes: area.byteCount, needed: needed) }
    // SAFETY (all of this file): offsets below 32, or of entries whose index was checked against `count`.
    let base = unsafe area.base
    switch unsafe clx_load_relaxed_u16(base + 8) {
    case 0:
      unsafe Self.makeFresh(base, count, start)
      return
    case 1: break
    case let version: throw .version(version)
    }
    let stored = unsafe clx_load_relaxed_u16(base + 10)
    guard stored == count else { throw .descriptorCount(stored, expected: count) }
    let used = unsafe try Self.settle(base, size: size, wordInRing: wordInRing)
    freeHead = unsafe clx_load_relaxed_u16(base + 14)
    let free = unsafe try Self.clearFree(base, count, from: freeHead)
    self.used = used
    unfinished = unsafe try Self.collect(base, count, free: free)
    var ids = Set<UInt16>()
    for request in unfinished where request.id >= size || !ids.insert(request.id).inserted {
      throw .corrupt("buffer id \(request.id)")
    }
    guard descriptorCount <= Int(size) else { throw .corrupt("\(descriptorCount) descriptors in flight") }
  }

  private static func makeFresh(_ base: UnsafeMutableRawPointer, _ count: UInt16, _ start: PackedPosition) {
    for i in 0..<count { unsafe clx_store_relaxed_u16(PackedInflight.entry(base, i) + 2, i &+ 1) }
    unsafe clx_store_relaxed_u16(base + 10, count)
    for offset in [12, 14] { unsafe clx_store_relaxed_u16(base + offset, 0) }
    for offset in [16, 18] { unsafe clx_store_relaxed_u16(base + offset, start.index) }
    for offset in [20, 21] { unsafe clx_store_relaxed_u8(base + offset, start.wrap ? 1 : 0) }
    clx_fence_compiler()
    unsafe clx_store_relaxed_u16(base + 8, 1)
  }

  /// Decides about the completion that was under way: the ring shows whether its descriptor became used.
  private static func settle(
    _ base: UnsafeMutableRawPointer, size: UInt16, wordInRing: (UInt16) -> PackedWord
  ) throws(InflightError) -> PackedPosition {
    let ahead = unsafe PackedPosition(
      index: clx_load_relaxed_u16(base + 16), wrap: clx_load_relaxed_u8(base + 20) != 0)
    let certain = unsafe PackedPosition(
      index: clx_load_relaxed_u16(base + 18), wrap: clx_load_relaxed_u8(base + 21) != 0)
    guard ahead.index < size, certain.index < size else { throw .corrupt("used position \(certain.index)") }
    if ahead.index != certain.index || ahead.wrap != certain.wrap {
      let word = wordInRing(certain.index)
      let isUsed =
        (word.flags & PackedWord.available != 0) == certain.wrap && (word.flags & PackedWord.used != 0) == certain.wrap
      if isUsed {
        unsafe clx_store_relaxed_u16(base + 14, clx_load_relaxed_u16(base + 12))
        unsafe clx_store_relaxed_u16(base + 18, ahead.index)
        unsafe clx_store_relaxed_u8(base + 21, ahead.wrap ? 1 : 0)
        return ahead
      }
    }
    // What ran ahead did not happen.
    unsafe clx_store_relaxed_u16(base + 12, clx_load_relaxed_u16(base + 14))
    unsafe clx_store_relaxed_u16(base + 16, certain.index)
    unsafe clx_store_relaxed_u8(base + 20, certain.wrap ? 1 : 0)
    return certain
  }

  /// Nothing on the free list is in flight, whatever its mark says. The list ends with `count`.
  private static func clearFree(
    _ base: UnsafeMutableRawPointer, _ count: UInt16, from head: UInt16
  ) throws(InflightError) -> [Bool] {
    var free = [Bool](repeating: false, count: Int(count))
    var index = head
    while index < count {
      guard !free[Int(index)] else { throw .corrupt("a loop in the free list at \(index)") }
      free[Int(index)] = true
      unsafe clx_store_relaxed_u8(PackedInflight.entry(base, index), 0)
      index = unsafe clx_load_relaxed_u16(PackedInflight.entry(base, index) + 2)
    }
    return free
  }

  private static func collect(
    _ base: UnsafeMutableRawPointer, _ count: UInt16, free: [Bool]
  ) throws(InflightError) -> [PackedInflight.Unfinished] {
    var found: [PackedInflight.Unfinished] = []
    var taken = free
    for head in 0..<count where unsafe clx_load_relaxed_u8(PackedInflight.entry(base, head)) != 0 {
      let first = unsafe PackedInflight.entry(base, head)
      let number = unsafe clx_load_relaxed_u16(first + 6)
      let last = unsafe clx_load_relaxed_u16(first + 4)
      guard number > 0, number <= count else { throw .corrupt("a request of \(number) descriptors") }
      var descriptors: [PackedInflight.Copy] = []
      var index = head
      while true {
        guard index < count, !taken[Int(index)] else { throw .corrupt("entry \(index) in two places") }
        taken[Int(index)] = true
        let entry = unsafe PackedInflight.entry(base, index)
        let word = unsafe UInt64(clx_load_relaxed_u32(entry + 20)) | UInt64(clx_load_relaxed_u16(entry + 16)) << 32
          | UInt64(clx_load_relaxed_u16(entry + 18)) << 48
        descriptors.append(
          unsafe PackedInflight.Copy(address: clx_load_relaxed_u64(entry + 24), word: PackedWord(raw: word)))
        if descriptors.count == Int(number) { break }
        index = unsafe clx_load_relaxed_u16(entry + 2)
      }
      guard index == last else { throw .corrupt("a request that ends at \(index), expected \(last)") }
      let counter = unsafe clx_load_relaxed_u64(first + 8)
      found.append(PackedInflight.Unfinished(entry: head, counter: counter, descriptors: descriptors))
    }
    return found.sorted { $0.counter < $1.counter }
  }
}
