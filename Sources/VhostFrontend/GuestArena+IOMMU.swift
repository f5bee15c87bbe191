// A guest's memory behind an IOMMU: drivers are given I/O virtual addresses, which are equal to no guest address, and behind
// which the guest's pages lie in another order. Any thread.

import CLinux
import Glibc

/// Where each page of an arena behind an IOMMU is: what the guest's I/O page table says.
public struct IOPageTable: Sendable {
  public static let pageBytes = 4096
  public static let firstAddress: UInt64 = 0x7_0000_0000
  static let guestStarts: [UInt64] = [0x10_0000, 0x4000_0000]
  static let userStarts: [UInt64] = [0x5b00_0000_0000, 0x5a00_0000_0000]

  /// The page of the memfd behind each page of I/O virtual addresses.
  let order: [Int]
  /// The first half of the memfd is the first region, the rest the second.
  let half: Int

  /// The first `straight` pages stay in order, the others are shuffled.
  init(pages: Int, straight: Int, seed: UInt64) {
    var order = Array(0..<pages)
    var state = seed | 1
    for i in stride(from: pages - 1, to: min(straight, pages), by: -1) {
      state ^= state << 13
      state ^= state >> 7
      state ^= state << 17
      order.swapAt(i, straight + Int(state % UInt64(i - straight + 1)))
    }
    self.order = order
    half = pages / 2
  }

  private func page(of address: UInt64) -> (page: Int, offset: UInt64)? {
    guard address >= Self.firstAddress else { return nil }
    let offset = address - Self.firstAddress
    guard offset / UInt64(Self.pageBytes) < UInt64(order.count) else { return nil }
    return (order[Int(offset) / Self.pageBytes], offset % UInt64(Self.pageBytes))
  }

  private func place(_ address: UInt64, _ starts: [UInt64]) -> UInt64? {
    guard let (page, offset) = page(of: address) else { return nil }
    let start = page < half ? starts[0] : starts[1]
    return start + UInt64((page < half ? page : page - half) * Self.pageBytes) + offset
  }

  /// What IOTLB updates name; nil for an address that nothing is behind.
  public func userAddress(of address: UInt64) -> UInt64? { place(address, Self.userStarts) }
  /// What a dirty log names.
  public func guestAddress(of address: UInt64) -> UInt64? { place(address, Self.guestStarts) }

  var table: [WireRegion] {
    let sizes = [half, order.count - half].map { UInt64($0 * Self.pageBytes) }
    return [
      WireRegion(
        guestAddress: Self.guestStarts[0], size: sizes[0], userAddress: Self.userStarts[0], mmapOffset: 0),
      WireRegion(
        guestAddress: Self.guestStarts[1], size: sizes[1], userAddress: Self.userStarts[1],
        mmapOffset: sizes[0]),
    ]
  }

  /// Where the guest's memory ends.
  public var guestEnd: UInt64 { table.map { $0.guestAddress + $0.size }.max() ?? 0 }
}

extension GuestArena {
  /// One memory of at least `bytes` bytes in two regions, behind an IOMMU. Its first `straight` bytes are one run in the
  /// guest's memory too.
  public convenience init(
    behindIOMMU bytes: Int, straight: Int, seed: UInt64 = 0x1075
  ) throws(FrontendError) {
    let pages = max(2, (bytes + IOPageTable.pageBytes - 1) / IOPageTable.pageBytes)
    let table = IOPageTable(
      pages: pages, straight: (straight + IOPageTable.pageBytes - 1) / IOPageTable.pageBytes, seed: seed)
    let region = ArenaRegion(at: IOPageTable.firstAddress, bytes: pages * IOPageTable.pageBytes)
    let file = try Self.file(bytes: UInt64(region.bytes), hugePages: false, seals: 0)
    let mapped = try MappedRegion(region, descriptor: file, page: IOPageTable.pageBytes)
    try mapped.reorder(table.order, of: file)
    self.init(files: [0: file], mapped: [mapped], addressing: .shifted(by: 0), pages: table)
  }
}

extension MappedRegion {
  /// Puts another page of the file behind each page, where it is not there already.
  func reorder(_ order: [Int], of file: FrontendDescriptor) throws(FrontendError) {
    let size = IOPageTable.pageBytes
    for (i, page) in order.enumerated() where i != page {
      // SAFETY: a page of this region's own mapping, which nobody else has yet.
      let place = unsafe base + i * size
      let mapped = unsafe mmap(
        place, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.raw, off_t(page * size))
      guard unsafe mapped == place else { throw .last("mmap") }
    }
  }
}
