// What a queue thread lends its queues: its ring, its helper, and constants that operations point at. Made with the thread
// and used on it alone, except where a word says otherwise.

import CLinux
import Glibc
import HostIO

@safe @usableFromInline final class ThreadTools {
  // SAFETY: one heap cell each, made in `init` and released in `deinit`, after the thread has ended and no runner is left.
  @usableFromInline let uring: UnsafeMutablePointer<IOUring>
  /// A constant 1: what is written to a call descriptor.
  let one: UnsafeMutablePointer<UInt64>
  /// The memory that operations may name as registered buffers.
  @usableFromInline let pinned: UnsafeMutablePointer<PinnedView>
  let helper: Helper?
  let mailbox: Mailbox<@Sendable (QueueThreadCore) -> Void>

  init(
    _ ring: consuming IOUring, helper: Helper?, mailbox: Mailbox<@Sendable (QueueThreadCore) -> Void>
  ) {
    unsafe uring = .allocate(capacity: 1)
    unsafe uring.initialize(to: ring)
    unsafe one = .allocate(capacity: 1)
    unsafe one.initialize(to: 1)
    unsafe pinned = .allocate(capacity: 1)
    unsafe pinned.initialize(to: PinnedView())
    self.helper = helper
    self.mailbox = mailbox
  }

  deinit {
    unsafe uring.deinitialize(count: 1)
    unsafe uring.deallocate()
    unsafe one.deallocate()
    unsafe pinned.pointee.set([])
    unsafe pinned.deallocate()
  }

  /// Runs `work` on the helper (here, where the thread has none), and completes with what it returns.
  @usableFromInline func offload(token: UInt64, _ work: @escaping @Sendable () -> Int32) {
    let mailbox = mailbox
    let deliver: @Sendable () -> Void = {
      let result = work()
      mailbox.post { $0.deliver(Token(raw: token), result: result) }
    }
    if let helper { helper.post(deliver) } else { deliver() }
  }
}
