// Memory whose pages are held in place for I/O: registered once, with a ring that never does any, and lent to the rings that do.
// Registering takes long (every page is found, and made where there is none): it happens on the control thread, and what a queue
// thread does is to take references.

import CLinux
import CLiburing
import Glibc

/// Where one registered buffer lies in this process, and its number.
public struct PinnedRange: Sendable, Equatable {
  public let start: UInt
  public let length: UInt
  public let slot: UInt16
}

/// The registered buffers of one device. Used by one thread at a time: the control thread.
@safe public final class BufferRegistry: @unchecked Sendable {
  /// Buffers a ring holds: as many gibibytes of guest memory can be held in place; what is beyond goes the usual way.
  public static let capacity = 256
  /// What the kernel takes as one.
  private static let largest: UInt = 1 << 30

  private struct Slot {
    let start: UInt
    let length: UInt
    /// Keeps the memory, so that nothing else can come to lie at its address while it is registered.
    let owner: any AnyObject & Sendable
  }

  // SAFETY: one heap cell, initialised by liburing in `init`, torn down in `deinit`. `slots` mirrors its table; both are
  // the control thread's alone.
  private let ring: UnsafeMutablePointer<io_uring>
  private var slots = [Slot?](repeating: nil, count: capacity)

  /// Makes the ring, disabled for ever, with an empty table. Before the sandbox.
  public init() throws(HostError) {
    unsafe ring = .allocate(capacity: 1)
    unsafe ring.initialize(to: io_uring())
    var parameters = io_uring_params()
    parameters.flags = UInt32(CLX_SETUP_R_DISABLED)
    // SAFETY: a zeroed parameter block and cell, as liburing asks.
    let code = unsafe io_uring_queue_init_params(1, ring, &parameters)
    guard code == 0 else {
      unsafe ring.deallocate()
      throw .system(call: "io_uring_setup", code: -code)
    }
    let made = unsafe io_uring_register_buffers_sparse(ring, UInt32(Self.capacity))
    guard made == 0 else {
      unsafe io_uring_queue_exit(ring)
      unsafe ring.deallocate()
      throw .system(call: "io_uring_register(buffers)", code: -made)
    }
  }

  deinit {
    // SAFETY: ours, and nobody uses it any more. Rings that took references keep theirs.
    unsafe io_uring_queue_exit(ring)
    unsafe ring.deallocate()
  }

  /// What `IOUring.takeBuffers` asks.
  var descriptor: Int32 { unsafe ring.pointee.ring_fd }

  /// Registers this memory and no other; what was registered before stays as it is. Where one part cannot be had nothing is
  /// registered any more: ENOMEM where the limit of locked memory (RLIMIT_MEMLOCK) is reached, or memory itself.
  public func set(
    _ regions: [(start: UInt, length: UInt64, owner: any AnyObject & Sendable)]
  ) throws(HostError) {
    var wanted: [Slot] = []
    for region in regions {
      var start = region.start
      var left = UInt(region.length)
      while left > 0 {
        let length = min(left, Self.largest)
        wanted.append(Slot(start: start, length: length, owner: region.owner))
        start += length
        left -= length
      }
    }
    for (i, slot) in slots.enumerated() {
      guard let slot else { continue }
      if let same = wanted.firstIndex(where: {
        $0.start == slot.start && $0.length == slot.length && $0.owner === slot.owner
      }) {
        wanted.remove(at: same)
      } else {
        try? put(nil, at: i)
      }
    }
    for slot in wanted {
      guard let free = slots.firstIndex(where: { $0 == nil }) else { return }
      do {
        try put(slot, at: free)
      } catch {
        for i in slots.indices where slots[i] != nil { try? put(nil, at: i) }
        throw error
      }
    }
  }

  private func put(_ slot: Slot?, at index: Int) throws(HostError) {
    // SAFETY: the region's owner keeps its memory; an empty vector empties the slot.
    var vector = unsafe iovec(
      iov_base: slot.map { unsafe UnsafeMutableRawPointer(bitPattern: $0.start) } ?? nil,
      iov_len: Int(slot?.length ?? 0))
    var tag: UInt64 = 0
    let code = unsafe io_uring_register_buffers_update_tag(ring, UInt32(index), &vector, &tag, 1)
    guard code == 1 else {
      throw .system(call: "io_uring_register(buffers)", code: code < 0 ? -code : EINVAL)
    }
    slots[index] = slot
  }

  /// What is registered, by address.
  public var ranges: [PinnedRange] {
    slots.enumerated().compactMap { place, slot in
      slot.map { PinnedRange(start: $0.start, length: $0.length, slot: UInt16(place)) }
    }.sorted { $0.start < $1.start }
  }
}

extension IOUring {
  /// Takes references to everything that a registry has, in place of what was taken before; operations under way keep theirs.
  /// Before `enable` from any thread, afterwards by the owner. Linux 6.13.
  public mutating func takeBuffers(of registry: BufferRegistry) throws(HostError) {
    var request = clx_uring_clone(
      source: UInt32(registry.descriptor), flags: UInt32(CLX_CLONE_REPLACE), source_offset: 0, offset: 0,
      count: 0, pad: (0, 0, 0))
    // SAFETY: reads the local value during the call.
    let code = unsafe clx_uring_register(descriptor, UInt32(CLX_REGISTER_CLONE_BUFFERS), &request, 1)
    guard code == 0 else { throw .system(call: "io_uring_register(clone buffers)", code: errno) }
  }

  /// Reads or writes memory of one registered buffer: `length` bytes at `address`, or, where `count` is not 0, as many vectors.
  @inlinable
  public mutating func moveFixed(
    _ operation: Operation, on file: FileSlot, offset: UInt64, address: UInt, length: UInt32,
    operationFlags: UInt32, buffer: UInt16, token: UInt64
  ) {
    let sqe = unsafe entry()
    // SAFETY: an entry of 64 bytes; the memory is the registered buffer's, the vectors the caller's until the completion.
    unsafe clx_sqe_fill(
      sqe, operation.rawValue, UInt8(CLX_IOSQE_FIXED_FILE), Int32(truncatingIfNeeded: file.index), offset,
      UInt64(address), length, operationFlags, token)
    unsafe sqe.storeBytes(of: buffer, toByteOffset: 40, as: UInt16.self)
  }
}
