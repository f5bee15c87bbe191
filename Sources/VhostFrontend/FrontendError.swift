// What can go wrong on the driver's side of vhost-user, with the numbers in it. Thrown by every file here;
// any thread.

import CLinux
import Glibc

/// Every error of this library. A sentence for people comes from `description`.
public enum FrontendError: Error, Equatable, Sendable {
  /// The wait named here ended without what it waited for.
  case timedOut(waitingFor: String)
  /// The back-end closed the socket while this was going on.
  case closed(during: String)
  /// A system call failed.
  case system(call: String, code: Int32)
  /// A socket path that does not fit into `sockaddr_un`.
  case pathTooLong(bytes: Int)
  /// An answer that is not the one that was due: header flags, request id or size.
  case badReply(request: UInt32, field: String, value: UInt64, expected: UInt64)
  /// More descriptors came with a message than its kind carries, or fewer.
  case wrongDescriptorCount(request: UInt32, count: Int, expected: Int)
  /// Control data was cut off: the peer sent more descriptors than the kernel hands over at once.
  case controlDataTruncated
  /// The back-end answered a request with a non-zero acknowledgement.
  case refused(request: UInt32, value: UInt64)
  /// A feature this dialogue cannot do without was not offered.
  case notOffered(feature: String)
  /// The guest arena has no room, or no memory at this guest address.
  case arenaFull(bytes: Int)
  case outsideArena(guestAddress: UInt64, bytes: Int)
  /// A ring of a size its format does not allow.
  case badRingSize(UInt16)
  /// The ring has no room for a chain of this many descriptors.
  case ringFull(descriptors: Int)
  /// What the device wrote into the ring is impossible.
  case ring(RingFault)
  /// The device signalled the queue's error descriptor.
  case queueBroken(index: UInt32)
  /// A chain that cannot be built: no descriptor, or an indirect table longer than the ring has room for.
  case impossibleChain(descriptors: Int)
  /// A request longer than its slot, or with parts that its framing cannot join.
  case impossibleRequest(reason: String)
  /// The device completed a request with a status other than 0.
  case requestFailed(type: UInt32, sector: UInt64, status: UInt8)
  /// A call that the state of the dialogue does not allow.
  case wrongState(String)
}

/// A used entry no device may write.
public enum RingFault: Error, Equatable, Sendable {
  /// The id of a used entry names no chain that is in flight: bogus, or completed twice.
  case unknownToken(UInt32)
  /// The used index ran ahead of what was made available.
  case usedIndexAhead(index: UInt16, expected: UInt16, inFlight: UInt16)
}

extension FrontendError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .timedOut(let what): "no \(what) in time"
    case .closed(let what): "the back-end closed the connection during \(what)"
    case .system(let call, let code): "\(call): error \(code) (\(Self.words(for: code)))"
    case .pathTooLong(let bytes): "a socket path of \(bytes) bytes; 107 is the most"
    case .badReply(let request, let field, let value, let expected):
      "reply to \(FrontendRequest(rawValue: request)): \(field) is \(value), expected \(expected)"
    case .wrongDescriptorCount(let request, let count, let expected):
      "\(FrontendRequest(rawValue: request)) carried \(count) descriptors, expected \(expected)"
    case .controlDataTruncated: "control data was cut off: more descriptors than fit"
    case .refused(let request, let value):
      "the back-end refused \(FrontendRequest(rawValue: request)) with \(value)"
    case .notOffered(let feature): "the back-end does not offer \(feature)"
    case .arenaFull(let bytes): "no room for \(bytes) bytes in the guest arena"
    case .outsideArena(let address, let bytes):
      "\(bytes) bytes at guest address \(address) are not in the arena"
    case .badRingSize(let size): "a ring of \(size) entries is not possible"
    case .ringFull(let count): "no room for \(count) descriptors in the ring"
    case .ring(.unknownToken(let token)): "the device completed \(token), which is not in flight"
    case .ring(.usedIndexAhead(let index, let expected, let inFlight)):
      "the used index went from \(expected) to \(index) with \(inFlight) chains in flight"
    case .queueBroken(let index): "the device reported an error on queue \(index)"
    case .impossibleChain(let count): "a chain of \(count) descriptors cannot be added"
    case .impossibleRequest(let reason): "a request that cannot be built: \(reason)"
    case .requestFailed(let type, let sector, let status):
      "request of type \(type) at sector \(sector) failed with status \(status)"
    case .wrongState(let what): what
    }
  }

  /// The calling thread's last system error.
  static func last(_ call: String) -> FrontendError { .system(call: call, code: errno) }

  private static func words(for code: Int32) -> String {
    var buffer = [CChar](repeating: 0, count: 128)
    // SAFETY: the buffer is ours, with the length given; the call ends the text with a zero.
    _ = unsafe buffer.withUnsafeMutableBufferPointer { unsafe clx_strerror(code, $0.baseAddress, $0.count) }
    return String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }
}
