// Messages from many threads to one.

import Synchronization

/// Messages to one thread, which waits on `wakeDescriptor` among other things: with poll(2) or with a
/// multishot poll of an io_uring.
public final class Mailbox<Message: Sendable>: Sendable {
  private let waiting = Mutex<[Message]>([])
  private let event: EventFD

  public init() throws(HostError) { event = try EventFD() }

  /// Becomes readable when a message comes into the empty box, and stays so until `takeAll`, which alone may
  /// read it.
  public var wakeDescriptor: Int32 { event.raw }

  /// Any thread.
  public func post(_ message: sending Message) {
    let wasEmpty = waiting.withLock { waiting in
      waiting.append(message)
      return waiting.count == 1
    }
    if wasEmpty { event.signal() }
  }

  /// All messages, oldest first; the owner only.
  public func takeAll() -> [Message] {
    // First the counter, then the box: a message that comes between the two is taken, and its signal, which
    // may come later, wakes the owner once for nothing. The other way round that signal would be lost with
    // its message waiting.
    event.drain()
    return waiting.withLock { waiting in
      defer { waiting = [] }
      return waiting
    }
  }
}
