// The memory that a front-end shares, on the control thread: maps regions as they come, and makes the immutable maps
// that queue threads read.

import CLinux
import HostIO
import VirtQueue

/// A region as a message describes it. Bytes and byte addresses.
struct RegionDescription: Equatable {
  var guestAddress: UInt64
  var size: UInt64
  var userAddress: UInt64
  /// Where in the file it begins.
  var fileOffset: UInt64

  init(_ reader: inout PayloadReader) {
    guestAddress = reader.u64()
    size = reader.u64()
    userAddress = reader.u64()
    fileOffset = reader.u64()
  }

  /// What a removal matches: the offset plays no part (vhost-user, VHOST_USER_REM_MEM_REG).
  func names(_ other: RegionDescription) -> Bool {
    guestAddress == other.guestAddress && size == other.size && userAddress == other.userAddress
  }
}

/// Why a region or a table is refused.
enum MemoryTableError: Error, Equatable {
  case file(HostError)
  case notMappable(FileFacts.Kind)
  case emptyRegion
  case offsetOverflow(offset: UInt64, size: UInt64)
  case fileTooShort(size: UInt64, needed: UInt64)
  case map(MemoryMapError)
  case tooManyRegions(Int)
  case noSuchRegion
}

/// The regions of one session. A value: a change is made on a copy and kept when everything else agreed to it.
struct MemoryTable {
  /// Slots promised by GET_MAX_MEM_SLOTS: what KVM offers, less a few.
  static let slotLimit = 509
  /// Regions a SET_MEM_TABLE carries at most.
  static let tableLimit = 8

  private struct Entry {
    let description: RegionDescription
    let region: GuestRegion
  }
  private var entries: [Entry] = []
  /// Regions taken out lately: some front-ends remove each once per queue pair.
  private var removed: [RegionDescription] = []

  var count: Int { entries.count }

  func contains(_ description: RegionDescription) -> Bool {
    entries.contains { $0.description == description }
  }

  /// Maps a region and appends it; the very same region again changes nothing. `closed`: it is not to be touched yet.
  mutating func add(
    _ description: RegionDescription, file: borrowing OwnedFD, closed: Bool = false
  ) throws(MemoryTableError) {
    if contains(description) { return }
    guard entries.count < Self.slotLimit else { throw .tooManyRegions(entries.count + 1) }
    entries.append(Entry(description: description, region: try Self.map(description, file, closed: closed)))
    removed.removeAll { $0.names(description) }
  }

  mutating func remove(_ description: RegionDescription) throws(MemoryTableError) {
    guard let index = entries.firstIndex(where: { $0.description.names(description) }) else {
      if removed.contains(where: { $0.names(description) }) { return }
      throw .noSuchRegion
    }
    removed.append(entries.remove(at: index).description)
    if removed.count > Self.slotLimit { removed.removeFirst() }
  }

  /// The mappings behind the regions.
  var mappings: [Mapping] { entries.compactMap { $0.region.owner as? Mapping } }

  /// Where a region begins in this process.
  func hostAddress(of description: RegionDescription) -> UInt64? {
    for entry in entries where entry.description == description {
      // SAFETY: told as a number, and not followed.
      return unsafe UInt64(UInt(bitPattern: entry.region.host))
    }
    return nil
  }

  /// Where the guest's memory ends.
  var guestEnd: UInt64 {
    entries.map { $0.description.guestAddress &+ $0.description.size }.max() ?? 0
  }

  /// The map that queue threads read.
  func makeMap(generation: UInt32, iotlb: IOTLB? = nil) throws(MemoryTableError) -> GuestMemoryMap {
    do {
      return try GuestMemoryMap(generation: generation, regions: entries.map(\.region), iotlb: iotlb)
    } catch {
      throw .map(error)
    }
  }

  /// Checks a region against its file, and maps it.
  private static func map(
    _ description: RegionDescription, _ file: borrowing OwnedFD, closed: Bool
  ) throws(MemoryTableError) -> GuestRegion {
    let facts: FileFacts
    do { facts = try FileFacts(of: file) } catch { throw .file(error) }
    guard facts.kind == .regular else { throw .notMappable(facts.kind) }
    guard description.size > 0 else { throw .emptyRegion }
    let (end, overflow) = description.fileOffset.addingReportingOverflow(description.size)
    guard !overflow, end <= UInt64(Int64.max) else {
      throw .offsetOverflow(offset: description.fileOffset, size: description.size)
    }
    // Past the end of the file there is only SIGBUS.
    guard end <= facts.size else { throw .fileTooShort(size: facts.size, needed: end) }
    // mmap wants whole pages; some front-ends send regions that begin within one.
    let pageSize = UInt64(facts.pageSize)
    let start = description.fileOffset / pageSize * pageSize
    let skip = Int(description.fileOffset - start)
    // Nobody may cut the memory off under us, where the file still lets us say so.
    _ = clx_fcntl_int(file.raw, Int32(CLX_F_ADD_SEALS), Int(CLX_F_SEAL_SHRINK))
    do {
      let mapping = try Mapping(
        file: file, offset: start, length: Int(end - start), pageSize: facts.pageSize, closed: closed)
      mapping.excludeFromCoreDumps()
      // SAFETY: `skip` is within the mapping, which the region owns.
      return unsafe GuestRegion(
        guestAddress: description.guestAddress, size: description.size, userAddress: description.userAddress,
        host: mapping.base + skip, owner: mapping, lost: mapping.lost)
    } catch {
      throw .file(error)
    }
  }
}
