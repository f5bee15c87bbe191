// The shared memory in which rings note what they have taken, so that a later process can finish it (vhost-user, "Inflight
// I/O tracking"): one area a queue, and after them a few bytes of our own. Made or mapped by the control thread.

import CLinux
import Glibc
import HostIO
import VirtQueue

/// Why an inflight region is refused.
enum InflightRegionError: Error, Equatable {
  case file(HostError)
  case notMappable(FileFacts.Kind)
  case badSize(queues: UInt16, queueSize: UInt16)
  case badRange(offset: UInt64, size: UInt64, file: UInt64)
  case tooSmall(size: UInt64, needed: UInt64)
}

/// A mapped inflight region.
@safe final class InflightRegion {
  /// How many queues it has areas for, and for how many descriptors each.
  struct Shape: Equatable {
    var queues: UInt16
    var queueSize: UInt16

    func stride(packed: Bool) -> UInt64 { UInt64(InflightArea.byteCount(size: queueSize, packed: packed)) }
    /// What we ask for: all areas, and our own bytes.
    func size(packed: Bool) -> UInt64 { areas(packed: packed) + ownBytes }
    /// Bytes of all areas.
    func areas(packed: Bool) -> UInt64 { UInt64(queues) * stride(packed: packed) }

    func check(queueLimit: Int) throws(InflightRegionError) {
      guard queues > 0, Int(queues) <= queueLimit, queueSize > 0, queueSize <= RingLayout.largestSize else {
        throw .badSize(queues: queues, queueSize: queueSize)
      }
    }
  }

  /// Our own bytes: {u64 mark, u64 state}.
  static let ownBytes: UInt64 = 64
  /// "vhswiftd", little-endian.
  private static let mark: UInt64 = 0x6474_6669_7773_6876

  let shape: Shape
  private let size: UInt64
  private let mapping: Mapping
  // SAFETY: `size` bytes of `mapping`, which lives as long as the region and every area made from it.
  private let base: UnsafeMutableRawPointer

  /// New shared memory of the right size, zeroed and sealed.
  static func makeFile(of size: UInt64) throws(InflightRegionError) -> OwnedFD {
    // SAFETY: a constant name.
    let file = unsafe OwnedFD(
      adopting: clx_memfd_create("vhost-inflight", UInt32(CLX_MFD_CLOEXEC | CLX_MFD_ALLOW_SEALING)))
    guard file.raw >= 0, ftruncate(file.raw, Int(size)) == 0 else {
      throw .file(.system(call: "memfd_create", code: errno))
    }
    _ = clx_fcntl_int(
      file.raw, Int32(CLX_F_ADD_SEALS), Int(CLX_F_SEAL_SHRINK | CLX_F_SEAL_GROW | CLX_F_SEAL_SEAL))
    return file
  }

  /// Maps what a front-end gives back. The file must hold all of the range.
  init(
    _ shape: Shape, packed: Bool, offset: UInt64, size: UInt64, file: borrowing OwnedFD
  ) throws(InflightRegionError) {
    let facts: FileFacts
    do { facts = try FileFacts(of: file) } catch { throw .file(error) }
    guard facts.kind == .regular else { throw .notMappable(facts.kind) }
    let (end, overflow) = offset.addingReportingOverflow(size)
    guard !overflow, end <= facts.size, size <= UInt64(Int32.max) else {
      throw .badRange(offset: offset, size: size, file: facts.size)
    }
    let needed = shape.areas(packed: packed)
    guard size >= needed else { throw .tooSmall(size: size, needed: needed) }
    let pageSize = UInt64(facts.pageSize)
    let start = offset / pageSize * pageSize
    // Nobody may cut the region off under us, where the file still lets us say so.
    _ = clx_fcntl_int(file.raw, Int32(CLX_F_ADD_SEALS), Int(CLX_F_SEAL_SHRINK))
    do {
      mapping = try Mapping(file: file, offset: start, length: Int(end - start), pageSize: facts.pageSize)
    } catch {
      throw .file(error)
    }
    unsafe base = unsafe mapping.base + Int(offset - start)
    self.shape = shape
    self.size = size
  }

  /// The area of a queue; nil where the region has none.
  func area(_ index: Int, packed: Bool) -> InflightArea? {
    let stride = shape.stride(packed: packed)
    guard index < Int(shape.queues), UInt64(index + 1) * stride <= size else { return nil }
    // SAFETY: within `size` bytes of the mapping, which is the owner.
    return unsafe InflightArea(
      base: base + index * Int(stride), byteCount: Int(stride), descriptorCount: shape.queueSize,
      owner: mapping, lost: mapping.lost)
  }

  /// Whether its pages were there whenever they were touched.
  var isWhole: Bool { mapping.lostPages == 0 }

  /// Whether a process has used this region before: the version of its first area is not 0.
  private var wasUsed: Bool {
    // SAFETY: an area has at least 32 bytes; split and packed have the version at 8.
    unsafe clx_load_relaxed_u16(base + 8) != 0
  }

  private var own: UnsafeMutableRawPointer? {
    let place = Int(size / 8 * 8) - Int(Self.ownBytes)
    return place >= 0 ? unsafe base + place : nil
  }

  /// What an earlier process knew of the device: nil where there was none, `.some(nil)` where its knowledge is lost.
  func savedState(packed: Bool) -> UInt64?? {
    guard wasUsed else { return nil }
    guard size >= shape.areas(packed: packed) + Self.ownBytes, let own = unsafe own,
      unsafe clx_load_relaxed_u64(own) == Self.mark
    else { return .some(nil) }
    return unsafe .some(clx_load_relaxed_u64(own + 8))
  }

  func save(_ state: UInt64, packed: Bool) {
    guard size >= shape.areas(packed: packed) + Self.ownBytes, let own = unsafe own else { return }
    // SAFETY: our own bytes, past all areas.
    unsafe clx_store_relaxed_u64(own + 8, state)
    unsafe clx_store_release_u64(own, Self.mark)
  }
}
