// A guest's memory: regions of memfds at chosen guest addresses, with an allocator on top and guards around
// what it gives. Shared by a driver's rings and requests; any thread.

import CLinux
import Glibc
import Synchronization

/// How guest addresses become the user addresses of the memory table.
public enum ArenaAddressing: Equatable, Sendable {
  /// User address = guest address + this: never equal, so that a mix-up shows.
  case shifted(by: UInt64)
  /// Both are the address in this process, as with libblkio and DPDK; the guest addresses asked for are
  /// ignored.
  case process
}

/// A guard that somebody wrote into.
public struct GuardDamage: Equatable, Sendable {
  public let address: UInt64
  public let expected: UInt8
  public let found: UInt8
}

@safe public final class GuestArena: @unchecked Sendable {
  public static let usualShift: UInt64 = 0x5a00_0000_0000
  private static let guardPattern = BytePattern(seed: 0x6775_6172_64)

  private struct State {
    var used: [Int]
    var guards: [Range<UInt64>] = []
  }

  /// As they are in the table: with `process` addressing, at the addresses they got.
  public let regions: [ArenaRegion]
  public let addressing: ArenaAddressing
  /// One memfd for each number of `ArenaRegion.file` that was used.
  public let files: [Int: FrontendDescriptor]
  /// Behind an IOMMU: what the addresses that `allocate` gives lead to.
  public let pages: IOPageTable?
  // SAFETY: the mappings live as long as the arena; only `state` changes, behind its lock. What is in guest
  // memory is shared with a back-end anyway.
  private let mapped: [MappedRegion]
  private let state: Mutex<State>

  /// Makes memfds just long enough, and maps each region apart.
  /// - Parameter seals: F_SEAL_* to set once the files have their length.
  public init(
    regions wanted: [ArenaRegion], addressing: ArenaAddressing = .shifted(by: usualShift),
    hugePages: Bool = false, seals: Int32 = 0
  ) throws(FrontendError) {
    let page = hugePages ? 2 << 20 : 4096
    for region in wanted {
      guard region.bytes > 0, region.fileOffset < 1 << 62, region.bytes < 1 << 62 else {
        throw .impossibleRequest(reason: "a region of \(region.bytes) bytes at offset \(region.fileOffset)")
      }
    }
    var files: [Int: FrontendDescriptor] = [:]
    for number in Set(wanted.map(\.file)).sorted() {
      let length = wanted.filter { $0.file == number }.map { $0.fileOffset + UInt64($0.bytes) }.max() ?? 0
      let rounded = hugePages ? (length + UInt64(page) - 1) / UInt64(page) * UInt64(page) : length
      files[number] = try Self.file(bytes: rounded, hugePages: hugePages, seals: seals)
    }
    var mapped: [MappedRegion] = []
    var placed: [ArenaRegion] = []
    for var region in wanted {
      guard let file = files[region.file] else { continue }
      let mapping = try MappedRegion(region, descriptor: file, page: page)
      if addressing == .process {
        region.guestAddress = unsafe UInt64(UInt(bitPattern: mapping.base))
      }
      guard region.guestAddress % 16 == region.fileOffset % 16 else {
        throw .impossibleRequest(reason: "guest address and file offset differ in their last 4 bits")
      }
      mapped.append(mapping)
      placed.append(region)
    }
    self.files = files
    self.mapped = mapped
    self.addressing = addressing
    pages = nil
    regions = placed
    state = Mutex(State(used: [Int](repeating: 0, count: placed.count)))
  }

  init(
    files: [Int: FrontendDescriptor], mapped: [MappedRegion], addressing: ArenaAddressing, pages: IOPageTable
  ) {
    self.files = files
    self.mapped = mapped
    self.addressing = addressing
    self.pages = pages
    regions = mapped.map(\.region)
    state = Mutex(State(used: [Int](repeating: 0, count: mapped.count)))
  }

  /// One region of `bytes` at a guest address above 0, in one memfd.
  public convenience init(
    bytes: Int, at guestAddress: UInt64 = 0x10_0000, hugePages: Bool = false
  ) throws(FrontendError) {
    try self.init(regions: [ArenaRegion(at: guestAddress, bytes: bytes)], hugePages: hugePages)
  }

  static func file(bytes: UInt64, hugePages: Bool, seals: Int32) throws(FrontendError)
    -> FrontendDescriptor
  {
    let flags = CLX_MFD_CLOEXEC | CLX_MFD_ALLOW_SEALING | (hugePages ? CLX_MFD_HUGETLB : 0)
    // SAFETY: the name is a literal.
    let raw = unsafe clx_memfd_create("guest-arena", flags)
    guard raw >= 0 else { throw .last("memfd_create") }
    let file = FrontendDescriptor(adopting: raw)
    guard ftruncate(raw, off_t(clamping: bytes)) == 0 else { throw .last("ftruncate") }
    if seals != 0 {
      guard clx_fcntl_int(raw, Int32(CLX_F_ADD_SEALS), Int(seals)) == 0 else {
        throw .last("fcntl(F_ADD_SEALS)")
      }
    }
    return file
  }

  // MARK: For the memory table

  /// The regions as messages name them, in the order of `descriptors`.
  public var table: [WireRegion] {
    if let pages { return pages.table }
    return regions.map {
      WireRegion(
        guestAddress: $0.guestAddress, size: UInt64($0.bytes), userAddress: userAddress(of: $0.guestAddress),
        mmapOffset: $0.fileOffset)
    }
  }

  /// The descriptor of each region.
  public var descriptors: [Int32] {
    if let pages { return pages.table.map { _ in files[0]?.raw ?? -1 } }
    return regions.map { files[$0.file]?.raw ?? -1 }
  }

  /// What ring addresses are: behind an IOMMU, the I/O virtual address itself.
  @inlinable public func userAddress(of guestAddress: UInt64) -> UInt64 {
    switch addressing {
    case .shifted(let shift): guestAddress &+ shift
    case .process: guestAddress
    }
  }

  // MARK: Allocation

  /// `bytes` of region `region` that nobody had before, zeroed as the memfd is.
  public func allocate(_ bytes: Int, alignment: Int = 16, region: Int = 0) throws(FrontendError) -> UInt64 {
    guard bytes >= 0, alignment > 0, regions.indices.contains(region) else { throw .arenaFull(bytes: bytes) }
    let address: UInt64? = state.withLock { state in
      let start = regions[region].guestAddress
      let first = start &+ UInt64(state.used[region])
      let aligned = (first &+ UInt64(alignment - 1)) / UInt64(alignment) * UInt64(alignment)
      guard aligned - start <= UInt64(regions[region].bytes),
        UInt64(bytes) <= UInt64(regions[region].bytes) - (aligned - start)
      else { return nil }
      state.used[region] = Int(aligned - start) + bytes
      return aligned
    }
    guard let address else { throw .arenaFull(bytes: bytes) }
    return address
  }

  /// The same with `guardBytes` of a pattern right before and right behind, for `damagedGuards` to look at.
  public func allocateGuarded(
    _ bytes: Int, alignment: Int = 16, guardBytes: Int = 64, region: Int = 0
  ) throws(FrontendError) -> UInt64 {
    let before = (guardBytes + alignment - 1) / alignment * alignment
    let start = try allocate(before + bytes + guardBytes, alignment: alignment, region: region)
    let address = start + UInt64(before)
    try addGuard(start..<address)
    try addGuard(address + UInt64(bytes)..<address + UInt64(bytes + guardBytes))
    return address
  }

  /// Declares memory that nobody may write from now on, and paints it.
  public func addGuard(_ range: Range<UInt64>) throws(FrontendError) {
    try write(Self.guardPattern.bytes(at: range.lowerBound, count: range.count), at: range.lowerBound)
    state.withLock { $0.guards.append(range) }
  }

  /// The first damaged byte of each guard that has one.
  public func damagedGuards() throws(FrontendError) -> [GuardDamage] {
    var damage: [GuardDamage] = []
    for range in state.withLock({ $0.guards }) {
      let found = try read(at: range.lowerBound, count: range.count)
      for (index, byte) in found.enumerated() {
        let address = range.lowerBound + UInt64(index)
        let expected = Self.guardPattern.byte(at: address)
        if byte != expected {
          damage.append(GuardDamage(address: address, expected: expected, found: byte))
          break
        }
      }
    }
    return damage
  }

  /// Bytes that `allocate` can still give from a region, alignment aside.
  public func bytesLeft(region: Int = 0) -> Int {
    state.withLock { regions[region].bytes - $0.used[region] }
  }

  // MARK: Access

  /// Where `bytes` from a guest address are in this process; they must lie in one region.
  /// The pointer is good as long as the arena lives.
  @unsafe public func pointer(
    to guestAddress: UInt64, bytes: Int
  ) throws(FrontendError) -> UnsafeMutableRawPointer {
    guard let (pointer, room) = unsafe find(guestAddress), bytes >= 0, bytes <= room else {
      throw .outsideArena(guestAddress: guestAddress, bytes: bytes)
    }
    return unsafe pointer
  }

  /// Copies out of guest memory, across adjacent regions where need be.
  public func read(at guestAddress: UInt64, count: Int) throws(FrontendError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      guard let (source, room) = unsafe find(guestAddress &+ UInt64(done)) else {
        throw .outsideArena(guestAddress: guestAddress, bytes: count)
      }
      let part = min(room, count - done)
      // SAFETY: `part` bytes are there on both sides.
      unsafe bytes.withUnsafeMutableBytes {
        unsafe clx_copy_once($0.baseAddress?.advanced(by: done), source, UInt(part))
      }
      done += part
    }
    return bytes
  }

  /// Copies into guest memory, likewise.
  public func write(_ bytes: [UInt8], at guestAddress: UInt64) throws(FrontendError) {
    var done = 0
    while done < bytes.count {
      guard let (target, room) = unsafe find(guestAddress &+ UInt64(done)) else {
        throw .outsideArena(guestAddress: guestAddress, bytes: bytes.count)
      }
      let part = min(room, bytes.count - done)
      // SAFETY: `part` bytes are there on both sides.
      unsafe bytes.withUnsafeBytes {
        unsafe clx_copy_once(target, $0.baseAddress?.advanced(by: done), UInt(part))
      }
      done += part
    }
  }

  /// The memory at a guest address, and how much of its region is left from there; nil in a hole.
  @unsafe private func find(_ guestAddress: UInt64) -> (pointer: UnsafeMutableRawPointer, room: Int)? {
    for (index, region) in regions.enumerated() where guestAddress >= region.guestAddress {
      let offset = guestAddress - region.guestAddress
      if offset < UInt64(region.bytes) {
        return unsafe (mapped[index].base + Int(offset), region.bytes - Int(offset))
      }
    }
    return nil
  }
}
