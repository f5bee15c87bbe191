// The seam between a queue's worker and where its frames go: a tap, or one of the ends in this process that there are to
// measure with. On the queue's thread.

import Glibc
import HostIO

/// One pair's way out, as one of its two workers sees it. A frame includes its virtio-net header.
package protocol PacketPort: ~Copyable, SendableMetatype {
  /// Becomes readable when a frame has come; nil: `hasFrames` is asked each turn.
  var file: FileSlot? { get }
  /// Whether a frame is there, where there is no `file`.
  var hasFrames: Bool { get }
  /// Moves the next frame into the vectors. Bytes, 0 where none is there, or a negated errno.
  // SAFETY: the caller's vectors name memory that may be written.
  mutating func receive(_ vectors: UnsafePointer<iovec>, count: Int) -> Int
  /// Sends what the vectors hold. Bytes, or a negated errno.
  // SAFETY: the caller's vectors name memory that may be read.
  mutating func send(_ vectors: UnsafePointer<iovec>, count: Int) -> Int
  /// Tries to make a port that has failed work again; whether it may.
  mutating func repair() -> Bool
}

extension PacketPort where Self: ~Copyable {
  package var file: FileSlot? { nil }
  package var hasFrames: Bool { false }
  package mutating func repair() -> Bool { true }
}

/// A tap's queue: one frame a system call, straight from and to the guest's memory.
package struct TapPort: PacketPort {
  private let tap: Tap
  private let queue: Int
  private let raw: Int32
  package let file: FileSlot?

  package init(_ tap: Tap, queue: Int, file: FileSlot?) {
    self.tap = tap
    self.queue = queue
    self.file = file
    raw = tap.queues[queue].raw
  }

  package mutating func receive(_ vectors: UnsafePointer<iovec>, count: Int) -> Int {
    while true {
      // SAFETY: the caller's vectors.
      let moved = unsafe readv(raw, vectors, Int32(truncatingIfNeeded: count))
      if moved >= 0 { return moved }
      let code = errno
      if code == EAGAIN { return 0 }
      if code != EINTR { return -Int(code) }
    }
  }

  package mutating func send(_ vectors: UnsafePointer<iovec>, count: Int) -> Int {
    while true {
      // SAFETY: the caller's vectors.
      let moved = unsafe writev(raw, vectors, Int32(truncatingIfNeeded: count))
      if moved >= 0 { return moved }
      let code = errno
      if code != EINTR { return -Int(code) }
    }
  }

  package mutating func repair() -> Bool { tap.reattach(queue) }
}

/// Takes everything, gives nothing.
struct SinkPort: PacketPort {
  mutating func receive(_ vectors: UnsafePointer<iovec>, count: Int) -> Int { 0 }
  mutating func send(_ vectors: UnsafePointer<iovec>, count: Int) -> Int { 1 }
}
