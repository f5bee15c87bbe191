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

  /// Takes over a connected socket.
  public init(adopting descriptor: consuming OwnedFD) { self.descriptor = descriptor }

  /// Connects to a listener; throws ENOENT, ECONNREFUSED and their like.
  public init(connectingTo path: String) throws(HostError) {
    let socket = try UnixAddress.socket()
    let address = try UnixAddress(path)
    guard unsafe address.withPointer({ unsafe connect(socket.raw, $0, $1) }) == 0 else { throw .last("connect") }
    descriptor = socket
  }

  /// Two ends of one stream.
  public static func pair() throws(HostError) -> (UnixStreamPair) {
    var ends: (Int32, Int32) = (-1, -1)
    // SAFETY: two Int32 next to each other.
    let code = unsafe withUnsafeMutableBytes(of: &ends) { bytes in
      unsafe socketpair(
        AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0,
        bytes.baseAddress?.assumingMemoryBound(to: Int32.self))
    }
    guard code == 0 else { throw .last("socketpair") }
    return UnixStreamPair(
      first: UnixStream(adopting: OwnedFD(adopting: ends.0)),
      second: UnixStream(adopting: OwnedFD(adopting: ends.1)))
  }

  /// Fills the buffer, however the bytes arrive, and puts descriptors that came with them into the bag. Takes no byte
  /// more, so that the next message's descriptors stay with it. A nil timeout waits without a bound; `stop` is a
  /// descriptor whose readability ends the wait, or -1.
  public func receive(
    into buffer: UnsafeMutableRawBufferPointer, collecting bag: inout DescriptorBag, stop: Int32,
    timeout: Duration? = nil
  ) throws(HostError) -> StreamOutcome {
    let deadline = timeout.map { ContinuousClock.now + $0 }
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

  /// One recvmsg; nil where there was nothing yet.
  private func receiveOnce(
    into buffer: UnsafeMutableRawBufferPointer, collecting bag: inout DescriptorBag
  ) throws(HostError) -> Int? {
    let room = clx_cmsg_space(Self.descriptorLimit * MemoryLayout<Int32>.size)
    var received: [Int32] = []
    var truncated = false
    // SAFETY: the message points at the caller's buffer and a control buffer of `room` bytes; clx_cmsg_* stay within
    // what the kernel said is there.
    let count = unsafe withUnsafeTemporaryAllocation(byteCount: room, alignment: 8) { control in
      var vector = unsafe iovec(iov_base: buffer.baseAddress, iov_len: buffer.count)
      return unsafe withUnsafeMutablePointer(to: &vector) { vector in
        var message = unsafe msghdr()
        unsafe message.msg_iov = unsafe vector
        unsafe message.msg_iovlen = 1
        unsafe message.msg_control = control.baseAddress
        unsafe message.msg_controllen = room
        let count = unsafe recvmsg(raw, &message, Int32(MSG_CMSG_CLOEXEC) | Int32(MSG_DONTWAIT))
        guard count >= 0 else { return count }
        var entry = unsafe clx_cmsg_first(&message)
        while let current = unsafe entry {
          unsafe Self.descriptors(in: current, to: &received)
          unsafe entry = unsafe clx_cmsg_next(&message, current)
        }
        truncated = unsafe message.msg_flags & Int32(MSG_CTRUNC) != 0
        return count
      }
    }
    for descriptor in received { bag.add(descriptor) }
    if truncated {
      bag.removeAll()
      throw .tooManyDescriptors
    }
    if count < 0 {
      if errno == EAGAIN || errno == EINTR { return nil }
      // A peer that is gone is the end of the stream, whatever it left unread.
      if errno == ECONNRESET { return 0 }
      throw .last("recvmsg")
    }
    return count
  }

  // SAFETY: the entry is one that the kernel filled, so its length is true.
  private static func descriptors(in entry: UnsafeMutablePointer<cmsghdr>, to list: inout [Int32]) {
    guard unsafe entry.pointee.cmsg_level == SOL_SOCKET, unsafe entry.pointee.cmsg_type == Int32(SCM_RIGHTS),
      let data = unsafe clx_cmsg_data(entry)
    else { return }
    let bytes = unsafe Int(entry.pointee.cmsg_len) - Int(clx_cmsg_len(0))
    for i in 0..<(bytes / MemoryLayout<Int32>.size) {
      list.append(unsafe data.loadUnaligned(fromByteOffset: i * MemoryLayout<Int32>.size, as: Int32.self))
    }
  }

  /// Sends all bytes, the descriptors with the first of them. Never blocks past the timeout.
  public func send(
    _ bytes: UnsafeRawBufferPointer, descriptors: [Int32] = [], stop: Int32, timeout: Duration
  ) throws(HostError) -> StreamOutcome {
    let deadline = ContinuousClock.now + timeout
    var done = 0
    while done < bytes.count {
      if let outcome = wait(for: .writable, stop: stop, until: deadline) { return outcome }
      // SAFETY: the rest of the caller's buffer.
      let rest = unsafe UnsafeRawBufferPointer(rebasing: bytes[done...])
      let count = unsafe sendOnce(rest, descriptors: done == 0 ? descriptors : [])
      if count < 0 {
        if errno == EAGAIN || errno == EINTR { continue }
        if errno == EPIPE || errno == ECONNRESET { return .endOfStream }
        throw .last("sendmsg")
      }
      done += count
    }
    return .complete
  }

  private func sendOnce(_ bytes: UnsafeRawBufferPointer, descriptors: [Int32]) -> Int {
    let length = descriptors.count * MemoryLayout<Int32>.size
    let room = descriptors.isEmpty ? 0 : clx_cmsg_space(length)
    // SAFETY: the control buffer has room for one entry of `length` bytes; sendmsg only reads the caller's bytes.
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
        return unsafe sendmsg(raw, &message, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
      }
    }
  }

  /// Nil once the socket is ready (or broken: the call then says how).
  private func wait(
    for events: Readiness, stop: Int32, until deadline: ContinuousClock.Instant?
  ) -> StreamOutcome? {
    while true {
      var milliseconds: Int32 = -1
      if let deadline {
        let left = deadline - .now
        if left <= .zero { return .timedOut }
        milliseconds = Int32(clamping: left.components.seconds * 1000 + left.components.attoseconds / 1_000_000_000_000_000 + 1)
      }
      let ready = Poll.any([(raw, events), (stop, .readable)], milliseconds: milliseconds)
      if !ready[1].isEmpty { return .stopped }
      if !ready[0].isEmpty { return nil }
    }
  }

  /// Ends both directions; a peer sees the end of the stream.
  public func shutdown() { _ = Glibc.shutdown(raw, Int32(SHUT_RDWR)) }
}

/// What `UnixStream.pair` returns.
public struct UnixStreamPair: ~Copyable {
  public var first: UnixStream
  public var second: UnixStream
}

/// A socket path as the kernel takes it.
struct UnixAddress {
  /// Bytes of path that fit, the NUL left aside.
  static let limit = 107
  private var value = sockaddr_un()

  init(_ path: String) throws(HostError) {
    let bytes = Array(path.utf8)
    guard !bytes.isEmpty, bytes.count <= Self.limit, !bytes.contains(0) else {
      throw .pathTooLong(path: path, limit: Self.limit)
    }
    value.sun_family = sa_family_t(AF_UNIX)
    // SAFETY: at most 107 of 108 bytes; the rest stays zero.
    unsafe withUnsafeMutableBytes(of: &value.sun_path) { unsafe $0.copyBytes(from: bytes) }
  }

  func withPointer<T>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> T) -> T {
    // SAFETY: a sockaddr_un is what an AF_UNIX call expects behind a sockaddr pointer.
    unsafe withUnsafePointer(to: value) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }

  static func socket() throws(HostError) -> OwnedFD {
    let raw = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard raw >= 0 else { throw .last("socket") }
    return OwnedFD(adopting: raw)
  }
}
