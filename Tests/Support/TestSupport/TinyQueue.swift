// A split queue written by hand in memory of this process: the least of a driver, for tests that start a device's queue
// without a wire. One thread.

import CLinux
import Glibc
import HostIO

/// Guest memory with one split queue of `size` in it, and its kick and call descriptors.
public final class TinyQueue {
  public static let guestBase: UInt64 = 0x10_0000
  public static let userBase: UInt64 = 0x7f12_0000_0000
  public let memory: Mapping
  public let size: Int
  public let kick: EventFD
  public let call: EventFD
  private var nextDescriptor = 0
  private var availableIndex: UInt16 = 0
  private var usedIndex: UInt16 = 0

  public var descriptorArea: UInt64 { Self.userBase }
  public var availableArea: UInt64 { Self.userBase + UInt64(16 * size) }
  public var usedArea: UInt64 { Self.userBase + UInt64((16 * size + 6 + 2 * size + 3) / 4 * 4) }
  /// Where data may go: offsets from here to the end are the test's.
  public var dataOffset: Int { Int(usedArea - Self.userBase) + 8 * size + 64 }

  public init(size: Int = 64, bytes: Int = 4 << 20) throws {
    self.size = size
    let file = OwnedFD(adopting: clx_memfd_create("tiny-queue", 1))
    guard ftruncate(file.raw, bytes) == 0 else { throw HostError.system(call: "ftruncate", code: errno) }
    memory = try Mapping(file: file, offset: 0, length: bytes)
    kick = try EventFD()
    call = try EventFD()
  }

  private var base: UnsafeMutableRawPointer { memory.base }
  private func host(_ user: UInt64) -> UnsafeMutableRawPointer { base + Int(user - Self.userBase) }

  public func guest(_ offset: Int) -> UInt64 { Self.guestBase + UInt64(offset) }
  public func pointer(_ offset: Int) -> UnsafeMutableRawPointer { base + offset }

  /// Makes a chain available (offsets into memory, lengths, writable?), without a kick. Returns its head.
  @discardableResult
  public func add(_ pieces: [(offset: Int, length: Int, writable: Bool)]) -> UInt16 {
    let head = UInt16(nextDescriptor)
    for (i, piece) in pieces.enumerated() {
      let place = base + 16 * nextDescriptor
      let isLast = i == pieces.count - 1
      nextDescriptor = (nextDescriptor + 1) % size
      place.storeBytes(of: guest(piece.offset), as: UInt64.self)
      place.storeBytes(of: UInt32(piece.length), toByteOffset: 8, as: UInt32.self)
      place.storeBytes(
        of: (isLast ? 0 : 1) | (piece.writable ? 2 : 0), toByteOffset: 12, as: UInt16.self)
      place.storeBytes(of: UInt16(nextDescriptor), toByteOffset: 14, as: UInt16.self)
    }
    let available = host(availableArea)
    clx_store_relaxed_u16(available + 4 + 2 * (Int(availableIndex) % size), head)
    availableIndex &+= 1
    clx_store_release_u16(available + 2, availableIndex)
    return head
  }

  public func sendKick() { kick.signal() }

  /// The next used element; waits for a call, at most `seconds`.
  public func waitUsed(seconds: Int = 20) -> (head: UInt16, length: UInt32)? {
    let deadline = ContinuousClock.now + .seconds(seconds)
    let used = host(usedArea)
    while clx_load_acquire_u16(used + 2) == usedIndex {
      if ContinuousClock.now > deadline { return nil }
      _ = Poll.one(call.raw, .readable, milliseconds: 100)
      call.drain()
    }
    let element = clx_load_relaxed_u64(used + 4 + 8 * (Int(usedIndex) % size))
    usedIndex &+= 1
    return (UInt16(truncatingIfNeeded: element), UInt32(truncatingIfNeeded: element >> 32))
  }
}
