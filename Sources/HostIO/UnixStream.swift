// One end of a connected Unix stream socket that carries descriptors. On one thread at a time.

import CLinux
import Glibc

/// How a transfer ended.
public enum StreamOutcome: Sendable, Equatable {
  case complete
  /// The peer closed before the first byte, or within the span.
  case endOfStream, endInsideMessage
  /// The stop descriptor became readable first, or the time was over.
  case stopped, timedOut
}

public struct UnixStream: ~Copyable, Sendable {
  private let descriptor: OwnedFD
  public var raw: Int32 { descriptor.raw }

  /// Descriptors that one receive has room for; a peer that sends more at once breaks the protocol.
  public static let descriptorLimit = 64

  /// Takes over a connected socket, blocking or not.
  public init(adopting descriptor: consuming OwnedFD) { self.descriptor = descriptor }

  /// Connects to a listener. Throws ENOENT, ECONNREFUSED, EACCES and their like at once, and EAGAIN where the
  /// listener's backlog is still full after the time.
  public init(connectingTo path: String, timeout: Duration = .seconds(5)) throws(HostError) {
    let address = try UnixAddress(path)
    let socket = try UnixAddress.socket()
    // A Unix socket connects or it does not: there is nothing to poll for, but a blocking one waits for the
    // backlog as long as it may send.
    _ = clx_fcntl_int(socket.raw, F_SETFL, 0)
    let (seconds, attoseconds) = max(timeout, .milliseconds(1)).components
    var limit = timeval(
      tv_sec: Int(min(seconds, 1_000_000)), tv_usec: Int(attoseconds / 1_000_000_000_000))
    // SAFETY: reads the local value.
    unsafe setsockopt(
      socket.raw, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    var code = address.connect(socket)
    // A signal ends the wait for the other side's backlog; nothing has begun then.
    for _ in 0..<100 where code == EINTR { code = address.connect(socket) }
    guard code == 0 else { throw .system(call: "connect to '\(path)'", code: code) }
    _ = clx_fcntl_int(socket.raw, F_SETFL, Int(O_NONBLOCK))
    descriptor = socket
  }

  /// Two ends of one stream.
  public static func pair() throws(HostError) -> UnixStreamPair {
    var ends: (Int32, Int32) = (-1, -1)
    // SAFETY: two Int32 next to each other.
    let code = unsafe withUnsafeMutableBytes(of: &ends) { bytes in
      unsafe socketpair(
        AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0,
        bytes.baseAddress?.assumingMemoryBound(to: Int32.self))
    }
    guard code == 0 else { throw .last("socketpair") }
    return UnixStreamPair(
      first: UnixStream(adopting: OwnedFD(adopting: ends.0)),
      second: UnixStream(adopting: OwnedFD(adopting: ends.1)))
  }

  /// Fills the buffer, however the bytes arrive, and puts descriptors that came with them into the bag, in
  /// order. Takes no byte more, so that the next message's descriptors stay with it.
  ///
  /// A nil timeout waits without a bound, zero takes what is there. `stop` is a descriptor whose readability
  /// ends the wait even where bytes are there, or -1. Throws `tooManyDescriptors`, and EMFILE where there is
  /// no room in this process for those that came; both close all that the bag holds, and the stream cannot be
  /// used any further.
  public func receive(
    into buffer: UnsafeMutableRawBufferPointer, collecting bag: inout DescriptorBag, stop: Int32,
    timeout: Duration? = nil
  ) throws(HostError) -> StreamOutcome {
    let deadline = Deadline(after: timeout)
    var done = 0
    while done < buffer.count {
      if let outcome = wait(for: .readable, stop: stop, until: deadline) { return outcome }
      // SAFETY: the rest of the caller's buffer.
      let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
      switch try unsafe receiveOnce(into: rest, collecting: &bag) {
      case nil: continue
      case 0: return done == 0 ? .endOfStream : .endInsideMessage
      case let count?: done += count
      }
    }
    return .complete
  }

  /// One recvmsg: the bytes that came, 0 at the end of the stream; nil where there was nothing yet.
  private func receiveOnce(
    into buffer: UnsafeMutableRawBufferPointer, collecting bag: inout DescriptorBag
  ) throws(HostError) -> Int? {
    let room = clx_cmsg_space(Self.descriptorLimit * MemoryLayout<Int32>.size)
    var received = 0
    var truncated = false
    // SAFETY: the message points at the caller's buffer and a control buffer of `room` bytes; clx_cmsg_* stay
    // within what the kernel said is there.
    let count = unsafe withUnsafeTemporaryAllocation(byteCount: room, alignment: 8) { control in
      var vector = unsafe iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
      return unsafe withUnsafeMutablePointer(to: &vector) { vector in
        var message = unsafe msghdr()
        unsafe message.msg_iov = unsafe vector
        unsafe message.msg_iovlen = 1
        unsafe message.msg_control = control.baseAddress
        unsafe message.msg_controllen = room
        let count = unsafe recvmsg(raw, &message, Int32(MSG_CMSG_CLOEXEC) | Int32(MSG_DONTWAIT))
        guard count >= 0 else { return -Int(errno) }
        var entry = unsafe clx_cmsg_first(&message)
        while let current = unsafe entry {
          received += unsafe Self.take(from: current, into: &bag)
          unsafe entry = unsafe clx_cmsg_next(&message, current)
        }
        truncated = unsafe message.msg_flags & Int32(MSG_CTRUNC) != 0
        return count
      }
    }
    if truncated {
      bag.removeAll()
      // The kernel cuts the list short also where this process may not open one more.
      throw received < Self.descriptorLimit ? .system(call: "recvmsg", code: EMFILE) : .tooManyDescriptors
    }
    if count >= 0 { return count }
    switch Int32(-count) {
    case EAGAIN, EINTR: return nil
    // A peer that is gone is the end of the stream, whatever it left unread.
    case ECONNRESET: return 0
    case let code: throw .system(call: "recvmsg", code: code)
    }
  }

  /// Puts the descriptors of one control message into the bag; returns how many there were.
  private static func take(
    from entry: UnsafeMutablePointer<cmsghdr>, into bag: inout DescriptorBag
  ) -> Int {
    // SAFETY (the whole body): the entry is one that the kernel filled, so its length is true.
    guard unsafe entry.pointee.cmsg_level == SOL_SOCKET, unsafe entry.pointee.cmsg_type == Int32(SCM_RIGHTS),
      let data = unsafe clx_cmsg_data(entry)
    else { return 0 }
    let size = MemoryLayout<Int32>.size
    let count = unsafe (Int(entry.pointee.cmsg_len) - Int(clx_cmsg_len(0))) / size
    for i in 0..<max(0, count) {
      bag.add(OwnedFD(adopting: unsafe data.loadUnaligned(fromByteOffset: i * size, as: Int32.self)))
    }
    return max(0, count)
  }

  /// Sends all bytes (at least one), the descriptors with the first of them. Never blocks past the timeout;
  /// zero sends what the socket takes at once. `.endOfStream`: the peer is gone. After any end but `complete`
  /// a part may have gone, so the stream cannot be used any further.
  public func send(
    _ bytes: UnsafeRawBufferPointer, descriptors: [Int32] = [], stop: Int32, timeout: Duration
  ) throws(HostError) -> StreamOutcome {
    guard unsafe !bytes.isEmpty || descriptors.isEmpty else { throw .system(call: "sendmsg", code: EINVAL) }
    let deadline = Deadline(after: timeout)
    var done = 0
    while done < bytes.count {
      if let outcome = wait(for: .writable, stop: stop, until: deadline) { return outcome }
      // SAFETY: the rest of the caller's buffer.
      let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[done...])
      let count = unsafe sendOnce(rest, descriptors: done == 0 ? descriptors : [])
      if count >= 0 {
        done += count
        continue
      }
      switch Int32(-count) {
      case EAGAIN, EINTR: continue
      case EPIPE, ECONNRESET: return .endOfStream
      case let code: throw .system(call: "sendmsg", code: code)
      }
    }
    return .complete
  }

  /// One sendmsg: the bytes it took, or the errno below zero.
  private func sendOnce(_ bytes: UnsafeRawBufferPointer, descriptors: [Int32]) -> Int {
    let length = descriptors.count * MemoryLayout<Int32>.size
    let room = descriptors.isEmpty ? 0 : clx_cmsg_space(length)
    // SAFETY: the control buffer has room for one entry of `length` bytes; sendmsg only reads the caller's
    // bytes.
    return unsafe withUnsafeTemporaryAllocation(byteCount: max(room, 8), alignment: 8) { control in
      var vector = unsafe iovec(
        iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
      return unsafe withUnsafeMutablePointer(to: &vector) { vector in
        var message = unsafe msghdr()
        unsafe message.msg_iov = unsafe vector
        unsafe message.msg_iovlen = 1
        if room > 0 {
          unsafe control.initializeMemory(as: UInt8.self, repeating: 0)
          unsafe message.msg_control = control.baseAddress
          unsafe message.msg_controllen = room
          if let entry = unsafe clx_cmsg_first(&message), let data = unsafe clx_cmsg_data(entry) {
            unsafe entry.pointee.cmsg_level = SOL_SOCKET
            unsafe entry.pointee.cmsg_type = Int32(SCM_RIGHTS)
            unsafe entry.pointee.cmsg_len = clx_cmsg_len(length)
            for (i, descriptor) in descriptors.enumerated() {
              unsafe data.storeBytes(
                of: descriptor, toByteOffset: i * MemoryLayout<Int32>.size, as: Int32.self)
            }
          }
        }
        let count = unsafe sendmsg(raw, &message, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
        return count >= 0 ? count : -Int(errno)
      }
    }
  }

  /// Nil once the socket is ready (or broken: the call then says how).
  private func wait(for events: Readiness, stop: Int32, until deadline: Deadline) -> StreamOutcome? {
    while true {
      let ready = Poll.any([(raw, events), (stop, .readable)], milliseconds: deadline.milliseconds)
      if !ready[1].isEmpty { return .stopped }
      if !ready[0].isEmpty { return nil }
      if deadline.isOver { return .timedOut }
    }
  }

  /// Ends both directions; a peer sees the end of the stream.
  public func shutdown() { _ = Glibc.shutdown(raw, Int32(SHUT_RDWR)) }
}

/// What `UnixStream.pair` returns.
@frozen public struct UnixStreamPair: ~Copyable {
  public var first: UnixStream
  public var second: UnixStream
}
