// The guest's memory as this process sees it: an immutable table of regions with a generation. Built by the
// control thread from what the front-end shares, read by every queue thread without a lock.
//
// A ring that takes up a map keeps it alive until its last request on it has completed (see SlotTable), so a
// region is unmapped by its owner's `deinit` and never under a running request.

import CLinux

/// One shared region. Addresses and sizes in bytes.
@safe public struct GuestRegion: Sendable {
  /// Where the guest sees it (guest physical address).
  public let guestAddress: UInt64
  public let size: UInt64
  /// Where the front-end sees it: ring addresses arrive in this space (vhost-user "user address").
  public let userAddress: UInt64
  /// Where this process sees `guestAddress`.
  // SAFETY: `size` bytes, mapped as long as `owner` lives (promised to `init`).
  public nonisolated(unsafe) let host: UnsafeMutableRawPointer
  /// Keeps the mapping behind `host` alive; unmaps it when the last map that names the region is gone.
  public let owner: any AnyObject & Sendable
  // SAFETY: one word, alive as long as `owner` (promised to `init`), read atomically.
  /// Counts pages of it that were gone when they were touched; nil where none can go.
  nonisolated(unsafe) let lost: UnsafeMutablePointer<UInt64>?

  // SAFETY: the caller promises that `owner` keeps `size` bytes at `host` mapped, and `lost` valid, for as long as it lives.
  public init(
    guestAddress: UInt64, size: UInt64, userAddress: UInt64, host: UnsafeMutableRawPointer,
    owner: any AnyObject & Sendable, lost: UnsafeMutablePointer<UInt64>? = nil
  ) {
    unsafe self.lost = unsafe lost
    self.guestAddress = guestAddress
    self.size = size
    self.userAddress = userAddress
    unsafe self.host = host
    self.owner = owner
  }
}

/// Why a set of regions is not a memory map.
public enum MemoryMapError: Error, Equatable, Sendable {
  case emptyRegion(guestAddress: UInt64)
  case addressOverflow(guestAddress: UInt64, userAddress: UInt64, size: UInt64)
  /// Two regions share guest or user addresses (vhost-user: memory regions must not overlap).
  case overlap(guestAddress: UInt64, with: UInt64)
}

/// A region as the hot path reads it: a range of one address space and the host address of its start.
@unsafe @usableFromInline struct MapEntry {
  @usableFromInline let start: UInt64
  @usableFromInline let size: UInt64
  @usableFromInline let host: UnsafeMutableRawPointer
}

/// An immutable memory map. Thread-safe: nothing changes after `init`.
@safe public final class GuestMemoryMap: Sendable {
  /// Rises by one with each new table; requests remember the one they were read under.
  public let generation: UInt32
  /// Sorted by guest address.
  public let regions: [GuestRegion]
  /// Behind an IOMMU: what leads from the addresses in rings and descriptors to user addresses.
  public let iotlb: IOTLB?

  // SAFETY: both tables are written in `init` only and freed in `deinit`; `regions` keeps what they point to.
  private nonisolated(unsafe) let byGuest: UnsafeMutablePointer<MapEntry>
  private nonisolated(unsafe) let byUser: UnsafeMutablePointer<MapEntry>

  /// Checks and sorts; throws on an empty region, an address overflow, or an overlap in either address space.
  public init(
    generation: UInt32, regions: [GuestRegion], iotlb: IOTLB? = nil
  ) throws(MemoryMapError) {
    for region in regions {
      if region.size == 0 { throw .emptyRegion(guestAddress: region.guestAddress) }
      if region.guestAddress.addingReportingOverflow(region.size).overflow
        || region.userAddress.addingReportingOverflow(region.size).overflow
      {
        throw .addressOverflow(
          guestAddress: region.guestAddress, userAddress: region.userAddress, size: region.size)
      }
    }
    let sorted = regions.sorted { $0.guestAddress < $1.guestAddress }
    let sortedByUser = regions.sorted { $0.userAddress < $1.userAddress }
    try Self.rejectOverlap(sorted) { $0.guestAddress }
    try Self.rejectOverlap(sortedByUser) { $0.userAddress }

    self.generation = generation
    self.regions = sorted
    self.iotlb = iotlb
    // SAFETY: one entry a region is written to each table, in bounds by construction; a map without regions has one
    // that nothing lies in, so that there is always a first.
    unsafe byGuest = .allocate(capacity: max(1, sorted.count))
    unsafe byUser = .allocate(capacity: max(1, sorted.count))
    if sorted.isEmpty || iotlb != nil {
      unsafe byGuest.initialize(to: MapEntry(start: 0, size: 0, host: byGuest))
    }
    if sorted.isEmpty {
      unsafe byUser.initialize(to: MapEntry(start: 0, size: 0, host: byUser))
    }
    for (i, region) in sorted.enumerated() where iotlb == nil {
      unsafe (byGuest + i).initialize(
        to: MapEntry(start: region.guestAddress, size: region.size, host: region.host))
    }
    for (i, region) in sortedByUser.enumerated() {
      unsafe (byUser + i).initialize(
        to: MapEntry(start: region.userAddress, size: region.size, host: region.host))
    }
  }

  deinit {
    // SAFETY: allocated in `init`; a view outlives its map only against its own contract.
    unsafe byGuest.deallocate()
    unsafe byUser.deallocate()
  }

  private static func rejectOverlap(
    _ sorted: [GuestRegion], start: (GuestRegion) -> UInt64
  ) throws(MemoryMapError) {
    for (a, b) in zip(sorted, sorted.dropFirst()) where start(b) - start(a) < a.size {
      throw .overlap(guestAddress: b.guestAddress, with: a.guestAddress)
    }
  }

  /// Guest physical addresses, for descriptors; behind an IOMMU, where descriptors carry none, nothing is in it. Valid
  /// while the map lives.
  public var guestView: MemoryView {
    unsafe MemoryView(entries: byGuest, count: iotlb == nil ? regions.count : 0)
  }
  /// Front-end addresses, for rings. Valid while the map lives.
  public var userView: MemoryView { unsafe MemoryView(entries: byUser, count: regions.count) }

  /// Whether every page was there when it was touched. False once one was gone: its file was cut off, and what was read
  /// there were zeros.
  public var isWhole: Bool {
    regions.allSatisfy { region in
      // SAFETY: the map holds the region's owner.
      unsafe region.lost.map { unsafe clx_load_relaxed_u64($0) == 0 } ?? true
    }
  }

  /// The guest addresses of bytes of this process, region by region; bytes that are in none are passed over.
  /// O(regions): for what is rare, or switched on for a while.
  func forEachGuestRange(
    at start: UnsafeMutableRawPointer, _ length: UInt64, _ body: (_ address: UInt64, _ length: UInt64) -> Void
  ) {
    var at = UInt64(UInt(bitPattern: start))
    let end = at &+ length
    while at < end {
      // SAFETY: only addresses are compared.
      let region = regions.first { unsafe at &- UInt64(UInt(bitPattern: $0.host)) < $0.size }
      guard let region else { return }
      let offset = unsafe at - UInt64(UInt(bitPattern: region.host))
      let part = min(end - at, region.size - offset)
      body(region.guestAddress + offset, part)
      at += part
    }
  }

  /// The host address of `length` bytes at a front-end address (behind an IOMMU: an I/O virtual one, where all of it
  /// allows `access`), where they lie in one region and at the given alignment (a power of two); nil otherwise.
  public func ringArea(
    at user: UInt64, length: UInt64, alignment: UInt64, for access: AccessRights = [.read, .write]
  ) -> UnsafeMutableRawPointer? {
    guard user & (alignment - 1) == 0 else { return nil }
    if let iotlb { return unsafe translatedArea(at: user, length, alignment, for: access, by: iotlb) }
    var hint = 0
    // SAFETY: the piece lies in a region this map keeps mapped.
    guard let piece = unsafe userView.piece(at: user, upTo: length, hint: &hint),
      unsafe piece.count >= length, unsafe UInt(bitPattern: piece.start) & UInt(alignment - 1) == 0
    else { return nil }
    return unsafe piece.start
  }

  /// The same through an IOTLB: any number of mappings, side by side in this process.
  private func translatedArea(
    at address: UInt64, _ length: UInt64, _ alignment: UInt64, for access: AccessRights, by iotlb: IOTLB
  ) -> UnsafeMutableRawPointer? {
    var start: UnsafeMutableRawPointer?
    var hint = 0
    var done: UInt64 = 0
    while done < length {
      let (at, overflow) = address.addingReportingOverflow(done)
      guard !overflow, let found = iotlb.find(at, upTo: length - done, for: access),
        let piece = unsafe userView.piece(at: found.user, upTo: found.count, hint: &hint)
      else { return nil }
      // SAFETY: only addresses are compared; `done` bytes from `start` are in memory.
      if let start = unsafe start {
        guard unsafe start + Int(done) == piece.start else { return nil }
      } else {
        unsafe start = unsafe piece.start
      }
      done += unsafe piece.count
    }
    guard UInt(bitPattern: start) & UInt(alignment - 1) == 0 else { return nil }
    return unsafe start
  }
}

/// A run of bytes that is contiguous in this process.
@unsafe public struct HostPiece {
  // SAFETY: `count` bytes at `start` are of one region of the map that was asked.
  public let start: UnsafeMutableRawPointer
  public let count: UInt64
  @inlinable init(start: UnsafeMutableRawPointer, count: UInt64) {
    unsafe self.start = unsafe start
    unsafe self.count = count
  }
}

/// An unowned look at one address space of a map: two words, no reference counting. Whoever holds one holds the map.
@safe public struct MemoryView {
  // SAFETY: `entries` points at `count` sorted entries that live as long as the map the view came from.
  @usableFromInline let entries: UnsafeMutablePointer<MapEntry>
  @usableFromInline let count: Int

  @inlinable init(entries: UnsafeMutablePointer<MapEntry>, count: Int) {
    unsafe self.entries = unsafe entries
    self.count = count
  }

  /// The longest run at `address` of at most `length` bytes that lies in one region; nil in a hole.
  /// `hint` remembers the region of the last answer. O(1) on a hit, O(log regions) otherwise.
  @inlinable @inline(__always)
  public func piece(at address: UInt64, upTo length: UInt64, hint: inout Int) -> HostPiece? {
    // SAFETY: `hint`, compared without its sign, and what `search` returns are below `count`; offsets are below the
    // entry's size.
    if UInt(bitPattern: hint) < UInt(bitPattern: count) {
      let entry = unsafe entries[hint]
      let offset = unsafe address &- entry.start
      if unsafe offset < entry.size {
        return unsafe HostPiece(
          start: entry.host + Int(truncatingIfNeeded: offset), count: min(length, entry.size &- offset))
      }
    }
    return unsafe search(at: address, upTo: length, hint: &hint)
  }

  @usableFromInline @inline(never)
  func search(at address: UInt64, upTo length: UInt64, hint: inout Int) -> HostPiece? {
    var low = 0
    var high = count
    while low < high {
      let middle = (low + high) / 2
      // SAFETY: 0 <= middle < count.
      if unsafe entries[middle].start <= address { low = middle + 1 } else { high = middle }
    }
    guard low > 0 else { return nil }
    // SAFETY: low - 1 is in bounds; the offset is checked against the entry's size.
    let entry = unsafe entries[low - 1]
    let offset = unsafe address - entry.start
    guard unsafe offset < entry.size else { return nil }
    hint = low - 1
    return unsafe HostPiece(
      start: entry.host + Int(truncatingIfNeeded: offset), count: min(length, entry.size - offset))
  }
}
