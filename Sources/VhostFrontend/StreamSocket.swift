// Bytes and descriptors over a Unix stream socket, each call with a deadline. Called by FrontendConnection;
// one thread a socket.

import CLinux
import Glibc

enum StreamSocket {
  /// SCM_MAX_FD: what the kernel takes with one message.
  static let largestDescriptorCount = 253

  static func make() throws(FrontendError) -> FrontendDescriptor {
    let raw = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
    guard raw >= 0 else { throw .last("socket") }
    return FrontendDescriptor(adopting: raw)
  }

  static func pair() throws(FrontendError) -> (FrontendDescriptor, FrontendDescriptor) {
    var ends: [Int32] = [-1, -1]
    // SAFETY: room for two descriptors.
    let failed = unsafe socketpair(
      AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0, &ends)
    guard failed == 0 else { throw .last("socketpair") }
    return (FrontendDescriptor(adopting: ends[0]), FrontendDescriptor(adopting: ends[1]))
  }

  /// The address of `path`, handed to `body` as bind(2) and connect(2) take it; what `body` returns.
  static func withAddress(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) throws(FrontendError) -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    let bytes = Array(path.utf8)
    guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else {
      throw .pathTooLong(bytes: bytes.count)
    }
    // SAFETY: the length was checked against the field; the rest of it stays zero.
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: bytes) }
    // SAFETY: every socket address begins like sockaddr; the length says how far this one goes.
    return unsafe withUnsafePointer(to: &address) { pointer in
      unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }

  // MARK: Sending

  /// Sends all the bytes; the descriptors go with the first of them.
  static func send(
    _ bytes: [UInt8], descriptors: [Int32], on raw: Int32, deadline: Deadline, what: String
  ) throws(FrontendError) {
    var done = 0
    var waiting = descriptors
    while done < bytes.count {
      let sent = sendOnce(bytes, from: done, upTo: bytes.count, descriptors: waiting, on: raw)
      if sent > 0 {
        done += sent
        waiting = []
      } else if sent == -Int(EAGAIN) {
        guard deadline.wait(for: POLLOUT, on: raw) != 0 else {
          throw .timedOut(waitingFor: "room to send \(what)")
        }
      } else if sent == -Int(EPIPE) || sent == -Int(ECONNRESET) {
        throw .closed(during: "sending \(what)")
      } else if sent != -Int(EINTR) {
        throw .system(call: "sendmsg", code: Int32(clamping: -sent))
      }
    }
  }

  /// One sendmsg(2) of `bytes[from..<upTo]`: the bytes it took, or the negative error.
  static func sendOnce(_ bytes: [UInt8], from: Int, upTo: Int, descriptors: [Int32], on raw: Int32) -> Int {
    let control = ControlBuffer(capacity: max(descriptors.count, 1))
    defer { withExtendedLifetime(control) {} }
    // SAFETY: vector, control buffer and header outlive the call; the range lies in the array.
    var message = unsafe msghdr()
    return unsafe bytes.withUnsafeBytes { all in
      let part = unsafe UnsafeRawBufferPointer(rebasing: all[from..<upTo])
      var vector = unsafe iovec(
        iov_base: UnsafeMutableRawPointer(mutating: part.baseAddress), iov_len: part.count)
      return unsafe withUnsafeMutablePointer(to: &vector) { vector in
        unsafe message.msg_iov = vector
        unsafe message.msg_iovlen = 1
        if !descriptors.isEmpty { unsafe control.attach(descriptors, to: &message) }
        let sent = unsafe sendmsg(raw, &message, Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
        return sent >= 0 ? sent : -Int(errno)
      }
    }
  }

  // MARK: Receiving

  /// Receives exactly `count` bytes; descriptors that come with them go to the end of `descriptors`.
  static func receive(
    _ count: Int, descriptors: inout [FrontendDescriptor], on raw: Int32, deadline: Deadline, what: String
  ) throws(FrontendError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let got = try receiveOnce(&bytes, from: done, descriptors: &descriptors, on: raw)
      if got > 0 {
        done += got
      } else if got == 0 || got == -Int(ECONNRESET) {
        throw .closed(during: what)
      } else if got == -Int(EAGAIN) {
        guard deadline.wait(for: POLLIN, on: raw) != 0 else { throw .timedOut(waitingFor: what) }
      } else if got != -Int(EINTR) {
        throw .system(call: "recvmsg", code: Int32(clamping: -got))
      }
    }
    return bytes
  }

  /// One recvmsg(2) into `bytes[from...]`: the bytes it gave, 0 at the end of the stream, or the negative
  /// error.
  private static func receiveOnce(
    _ bytes: inout [UInt8], from: Int, descriptors: inout [FrontendDescriptor], on raw: Int32
  ) throws(FrontendError) -> Int {
    let control = ControlBuffer(capacity: largestDescriptorCount)
    defer { withExtendedLifetime(control) {} }
    // SAFETY: vector, control buffer and header outlive the call; the vector is the rest of the array.
    var message = unsafe msghdr()
    let got = unsafe bytes.withUnsafeMutableBytes { all in
      let part = unsafe UnsafeMutableRawBufferPointer(rebasing: all[from...])
      var vector = unsafe iovec(iov_base: part.baseAddress, iov_len: part.count)
      return unsafe withUnsafeMutablePointer(to: &vector) { vector in
        unsafe message.msg_iov = vector
        unsafe message.msg_iovlen = 1
        unsafe control.lend(to: &message)
        let got = unsafe recvmsg(raw, &message, Int32(MSG_CMSG_CLOEXEC) | Int32(MSG_DONTWAIT))
        return got >= 0 ? got : -Int(errno)
      }
    }
    guard got >= 0 else { return got }
    unsafe descriptors += control.descriptors(in: &message)
    // SAFETY: reads a number.
    guard unsafe message.msg_flags & Int32(MSG_CTRUNC) == 0 else { throw .controlDataTruncated }
    return got
  }
}

/// Room for one SCM_RIGHTS control message (cmsg(3)).
@safe private final class ControlBuffer {
  // SAFETY: `bytes` long, aligned for cmsghdr, freed once in deinit.
  private let base: UnsafeMutableRawPointer
  private let bytes: Int

  init(capacity: Int) {
    bytes = clx_cmsg_space(capacity * MemoryLayout<Int32>.size)
    unsafe base = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 16)
    unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
  }

  deinit { unsafe base.deallocate() }

  /// The whole buffer, for the kernel to fill.
  @unsafe func lend(to message: inout msghdr) {
    unsafe message.msg_control = base
    unsafe message.msg_controllen = bytes
  }

  /// One message of descriptors, for the kernel to read. The capacity is no less than their number.
  @unsafe func attach(_ descriptors: [Int32], to message: inout msghdr) {
    let length = descriptors.count * MemoryLayout<Int32>.size
    unsafe message.msg_control = base
    unsafe message.msg_controllen = clx_cmsg_space(length)
    guard let header = unsafe clx_cmsg_first(&message) else { return }
    unsafe header.pointee.cmsg_level = SOL_SOCKET
    unsafe header.pointee.cmsg_type = Int32(SCM_RIGHTS)
    unsafe header.pointee.cmsg_len = clx_cmsg_len(length)
    guard let data = unsafe clx_cmsg_data(header) else { return }
    unsafe descriptors.withUnsafeBytes { source in
      guard let start = source.baseAddress else { return }
      unsafe data.copyMemory(from: start, byteCount: length)
    }
  }

  /// What the kernel handed over.
  @unsafe func descriptors(in message: inout msghdr) -> [FrontendDescriptor] {
    var found: [FrontendDescriptor] = []
    var next = unsafe clx_cmsg_first(&message)
    while let header = unsafe next {
      if unsafe header.pointee.cmsg_level == SOL_SOCKET,
        unsafe header.pointee.cmsg_type == Int32(SCM_RIGHTS),
        let data = unsafe clx_cmsg_data(header)
      {
        let length = unsafe Int(header.pointee.cmsg_len) - Int(clx_cmsg_len(0))
        for index in 0..<max(0, length / MemoryLayout<Int32>.size) {
          let raw = unsafe data.loadUnaligned(fromByteOffset: 4 * index, as: Int32.self)
          found.append(FrontendDescriptor(adopting: raw))
        }
      }
      unsafe next = unsafe clx_cmsg_next(&message, header)
    }
    return found
  }
}
