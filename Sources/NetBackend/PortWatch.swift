// How a worker that reads a port follows the port's file: polled as long as the worker runs; tried again now and then where the
// port has failed (its tap is gone). On the queue's thread.

import CLinux
import DeviceKit
import Glibc
import HostIO
import VirtQueue

/// Its operations come back to the worker's `completed`, which passes them on. The worker has none under head 0 of its own.
package struct PortWatch {
  @usableFromInline enum Part {
    @inlinable static var readable: UInt8 { 1 }
    @inlinable static var retry: UInt8 { 2 }
  }

  /// A frame may be there. The worker clears it when none was.
  @usableFromInline package var isReadable = true
  @usableFromInline var isPolling = false
  @usableFromInline var isBroken = false

  package init() {}

  /// Has the file polled, where it is not. At the beginning of a turn.
  @inlinable @inline(__always)
  package mutating func begin<R: VirtRing & ~Copyable>(_ file: FileSlot?, _ q: inout QueueIO<R>) {
    guard !isPolling, !isBroken, let file else { return }
    isPolling = true
    isReadable = true
    q.pollReadable(file, head: 0, part: Part.readable)
  }

  /// One of the watch's operations has ended. True: the port is to be repaired, and `repaired` told what came of it.
  @inlinable
  package mutating func completed<R: VirtRing & ~Copyable>(
    _ completion: Completion, _ q: inout QueueIO<R>
  ) -> Bool {
    if completion.part == Part.retry { return !q.isDraining }
    isReadable = true
    if !completion.more { isPolling = false }
    // The kernel may end a poll at any time; the next turn begins another. One that has failed would fail at once again, and
    // one that goes on after an error tells what a queue without buffers learns nowhere else.
    if completion.result < 0 || completion.result & Int32(CLX_POLLERR) != 0 { retryLater(&q) }
    return false
  }

  /// Whether the port may work again.
  @inlinable
  package mutating func repaired<R: VirtRing & ~Copyable>(_ mayWork: Bool, _ q: inout QueueIO<R>) {
    isBroken = false
    if mayWork { isReadable = true } else { retryLater(&q) }
  }

  /// Reading has failed with this errno. True: that was one frame's, which is gone, and the next one is there or not. False: the
  /// port has no device any more; it is tried again, not asked.
  @inlinable
  package mutating func failed<R: VirtRing & ~Copyable>(_ code: Int, _ q: inout QueueIO<R>) -> Bool {
    if code == Int(EFAULT) || code == Int(EINVAL) { return true }
    isReadable = false
    retryLater(&q)
    return false
  }

  @usableFromInline mutating func retryLater<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    guard !isBroken, !q.isDraining else { return }
    isBroken = true
    q.pause(head: 0, part: Part.retry)
  }

  /// Ends the poll: the worker's queue is being stopped.
  @inlinable
  package mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {
    if isPolling { q.cancelPoll(head: 0, part: Part.readable) }
  }
}
