// The bytes of a packed ring's inflight log, field by field (vhost-user, "Inflight I/O tracking"). No decisions: those are
// in `PackedInflight` and `PackedInflightRecovery`.
//
//   header: u64 features, u16 version @8, u16 count @10, u16 free head @12, u16 old free head @14, u16 used index @16,
//           u16 old used index @18, u8 used wrap @20, u8 old used wrap @21
//   entry:  32 bytes each, from 32 on: u8 in flight @0, u16 next @2, u16 last @4, u16 num @6, u64 counter @8, u16 id @16,
//           u16 flags @18, u32 length @20, u64 address @24

import CLinux

/// A descriptor as it was read from the ring.
struct PackedCopy {
  let address: UInt64
  let word: PackedWord
}

/// Accessors of a log. Every one is a single load or store; entries past the end read as zeros and take nothing.
@safe struct PackedLog {
  // SAFETY: the area has at least 32 + 32 * count bytes (checked by `init`) and keeps them mapped; indices are checked
  // against `count` in `entry`.
  private let area: InflightArea
  let count: UInt16

  init(_ area: InflightArea, size: UInt16) throws(InflightError) {
    let needed = 32 + 32 * Int(area.descriptorCount)
    guard area.descriptorCount >= size, area.byteCount >= needed else {
      throw .tooSmall(bytes: area.byteCount, needed: needed)
    }
    self.area = area
    count = area.descriptorCount
  }

  private var base: UnsafeMutableRawPointer { unsafe area.base }
  private func entry(_ index: UInt16) -> UnsafeMutableRawPointer? {
    index < count ? unsafe base + 32 + 32 * Int(index) : nil
  }
  private func load(_ index: UInt16, _ offset: Int) -> UInt16 {
    unsafe entry(index).map { unsafe clx_load_relaxed_u16($0 + offset) } ?? 0
  }
  private func store(_ value: UInt16, _ index: UInt16, _ offset: Int) {
    if let entry = unsafe entry(index) { unsafe clx_store_relaxed_u16(entry + offset, value) }
  }

  // MARK: Header

  var version: UInt16 {
    get { unsafe clx_load_relaxed_u16(base + 8) }
    nonmutating set { unsafe clx_store_relaxed_u16(base + 8, newValue) }
  }
  var storedCount: UInt16 {
    get { unsafe clx_load_relaxed_u16(base + 10) }
    nonmutating set { unsafe clx_store_relaxed_u16(base + 10, newValue) }
  }
  /// The first free entry; ahead of `certainFreeHead` while something is under way.
  var freeHead: UInt16 {
    get { unsafe clx_load_relaxed_u16(base + 12) }
    nonmutating set { unsafe clx_store_relaxed_u16(base + 12, newValue) }
  }
  var certainFreeHead: UInt16 {
    get { unsafe clx_load_relaxed_u16(base + 14) }
    nonmutating set { unsafe clx_store_relaxed_u16(base + 14, newValue) }
  }
  /// Where the next used descriptor goes; ahead of `certainUsed` while one is being written.
  var used: PackedPosition {
    get {
      unsafe PackedPosition(index: clx_load_relaxed_u16(base + 16), wrap: clx_load_relaxed_u8(base + 20) != 0)
    }
    nonmutating set {
      unsafe clx_store_relaxed_u16(base + 16, newValue.index)
      unsafe clx_store_relaxed_u8(base + 20, newValue.wrap ? 1 : 0)
    }
  }
  var certainUsed: PackedPosition {
    get {
      unsafe PackedPosition(index: clx_load_relaxed_u16(base + 18), wrap: clx_load_relaxed_u8(base + 21) != 0)
    }
    nonmutating set {
      unsafe clx_store_relaxed_u16(base + 18, newValue.index)
      unsafe clx_store_relaxed_u8(base + 21, newValue.wrap ? 1 : 0)
    }
  }

  // MARK: Entries

  func isInFlight(_ index: UInt16) -> Bool {
    unsafe entry(index).map { unsafe clx_load_relaxed_u8($0) != 0 } ?? false
  }
  func setInFlight(_ index: UInt16, _ value: Bool) {
    if let entry = unsafe entry(index) { unsafe clx_store_relaxed_u8(entry, value ? 1 : 0) }
  }
  func next(_ index: UInt16) -> UInt16 { load(index, 2) }
  func setNext(_ index: UInt16, _ value: UInt16) { store(value, index, 2) }
  /// The last entry of the request that begins at `index`, and how many it has.
  func last(_ index: UInt16) -> UInt16 { load(index, 4) }
  func setLast(_ index: UInt16, _ value: UInt16) { store(value, index, 4) }
  func number(_ index: UInt16) -> UInt16 { load(index, 6) }
  func setNumber(_ index: UInt16, _ value: UInt16) { store(value, index, 6) }
  func counter(_ index: UInt16) -> UInt64 {
    unsafe entry(index).map { unsafe clx_load_relaxed_u64($0 + 8) } ?? 0
  }
  func setCounter(_ index: UInt16, _ value: UInt64) {
    if let entry = unsafe entry(index) { unsafe clx_store_relaxed_u64(entry + 8, value) }
  }
  /// The copy of a descriptor: id, flags and length are kept in another order than the ring's.
  func copy(_ index: UInt16) -> PackedCopy {
    let id = UInt64(load(index, 16))
    let flags = UInt64(load(index, 18))
    let length = unsafe entry(index).map { unsafe clx_load_relaxed_u32($0 + 20) } ?? 0
    let address = unsafe entry(index).map { unsafe clx_load_relaxed_u64($0 + 24) } ?? 0
    return PackedCopy(address: address, word: PackedWord(raw: UInt64(length) | id << 32 | flags << 48))
  }
  func setCopy(_ index: UInt16, _ copy: PackedCopy) {
    guard let entry = unsafe entry(index) else { return }
    store(copy.word.id, index, 16)
    store(copy.word.flags, index, 18)
    unsafe clx_store_relaxed_u32(entry + 20, copy.word.length)
    unsafe clx_store_relaxed_u64(entry + 24, copy.address)
  }
}
