// The switch itself: decides for each frame which ports get a copy. Everything but `init` is on the one queue thread that
// serves all ports, so no lock is anywhere; a port's receiver is reached by one indirect call a frame.

import DeviceKit
import Glibc
import HostIO
import NetBackend
import Synchronization

/// What became of a frame, for its sender to count.
struct Verdict {
  var counter: PortCounter = .frames
  /// Learned something while at it.
  var learned = false
  var moved = false
  var refusedToLearn = false
}

/// A learning switch over the ports of one thread.
// SAFETY (Sendable): made by the control thread; its mutable state is touched by the queue thread alone, from the first
// queue that starts there. Ports are told of each other only through it.
@safe public final class Switch: @unchecked Sendable {
  /// How many addresses it knows at most, of all guests together and of those behind the uplink.
  public static let addressLimit = 8192
  /// Ports there may be.
  public static let portLimit = 64

  let configuration: SwitchConfiguration
  private let thread: QueueThread
  /// The uplink's place among the ports: behind those of the guests.
  let uplinkPort: Int?
  private var table: ForwardingTable
  private var ports: [PortState]
  private var seconds: UInt32 = 0
  private var now: UInt64 = 0

  /// A port as the switch sees it.
  private struct PortState {
    let configuration: PortConfiguration
    /// Networks by number, for trunks.
    let allowed: NetworkSet
    let floods: TokenBucket?
    var receiver: (QueueDoor<Frame>)?
  }

  /// `thread` serves all ports; it has `configuration.seats` seats.
  public init(_ configuration: SwitchConfiguration, on thread: QueueThread) {
    self.configuration = configuration
    self.thread = thread
    let guests = configuration.ports.count
    var shares = [Int](repeating: max(16, Self.addressLimit / max(1, guests)), count: guests)
    if configuration.uplink != nil { shares.append(Self.addressLimit) }
    uplinkPort = configuration.uplink == nil ? nil : guests
    table = ForwardingTable(shares: shares, ageing: configuration.ageing)
    ports = (configuration.ports + (configuration.uplink.map { [$0] } ?? [])).map { port in
      PortState(
        configuration: port, allowed: NetworkSet(port.networks), floods: port.floods.map { TokenBucket($0) })
    }
    for (index, port) in configuration.ports.enumerated() {
      guard let mac = port.mac else { continue }
      for network in NetworkSet(port.networks).members {
        _ = table.fix(mac.value, network: network, port: UInt16(index))
      }
    }
  }

  // MARK: Ports come and go

  func attach(_ receiver: QueueDoor<Frame>, port: Int) { ports[port].receiver = receiver }

  /// No frame goes to the port from here on.
  func detach(port: Int) { ports[port].receiver = nil }

  /// The port's sender has stopped: what it taught is forgotten.
  func silence(port: Int) { table.forget(port: UInt16(port)) }

  // MARK: Frames

  /// Looks at the clock; once a batch.
  @inline(__always)
  func beginBatch(at now: UInt64) {
    self.now = now
    seconds = UInt32(truncatingIfNeeded: now / 1_000_000_000)
  }

  /// The network that a frame from a port is in, by its tag's number (nil: it has none, 0: it only has a priority); nil:
  /// none that the port may use. `strips`: the tag is no part of the frame.
  @inline(__always)
  func network(of port: Int, tag: UInt16?) -> (network: UInt16, strips: Bool)? {
    switch ports[port].configuration.networks {
    case .transparent: return (0, false)
    case .access(let number): return tag ?? 0 == 0 ? (number, true) : nil
    case .trunk(let native, _):
      guard let tag, tag != 0 else { return native.map { ($0, true) } }
      return ports[port].allowed.contains(tag) ? (tag, true) : nil
    }
  }

  /// Whether a frame of this network carries a tag at a port; nil: the port is not in the network.
  @inline(__always)
  private func tags(_ network: UInt16, at port: Int) -> Bool? {
    switch ports[port].configuration.networks {
    case .transparent: return network == 0 ? false : nil
    case .access(let number): return network == number ? false : nil
    case .trunk(let native, _):
      if network == native { return false }
      return ports[port].allowed.contains(network) ? true : nil
    }
  }

  /// Says for a guest that it is behind this port now: with the broadcast that bridges know, in the network that the port's
  /// untagged frames are in. Others have no name here. Any thread.
  func announce(_ address: MACAddress, from port: Int) {
    thread.post { [self] in
      guard let (network, _) = network(of: port, tag: nil) else { return }
      let bytes = EthernetFrame.announcement(of: address)
      var link = LinkHeader()
      (link.low, link.high) = (0xffff_ffff_ffff | address.value << 48, UInt32(address.value >> 16))
      // RARP.
      link.type = UInt16(0x8035).bigEndian
      // SAFETY: the array's own bytes and the local vector, for the length of the calls.
      unsafe bytes.withUnsafeBytes { bytes in
        let segment = unsafe iovec(
          iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
        unsafe withUnsafePointer(to: segment) { segment in
          beginBatch(at: Monotonic.now)
          let frame = unsafe Frame(
            segments: segment, count: 1, payloadStart: LinkHeader.byteCount,
            payload: bytes.count - LinkHeader.byteCount, link: link, header: NetHeader(), network: network,
            priority: 0)
          _ = forward(frame, from: port)
        }
      }
    }
  }

  /// Gives a frame to whom it is for.
  func forward(_ frame: borrowing Frame, from port: Int) -> Verdict {
    var verdict = Verdict()
    let source = frame.link.source
    // A group is nobody's source (IEEE 802.3 §3.2.3).
    guard source & 1 == 0, source != 0 else { return Verdict(counter: .malformed) }
    if let mac = ports[port].configuration.mac {
      guard source == mac.value else { return Verdict(counter: .spoofed) }
    } else {
      switch table.learn(source, network: frame.network, port: UInt16(truncatingIfNeeded: port), now: seconds)
      {
      case .known: break
      case .new: verdict.learned = true
      case .moved: verdict.moved = true
      case .refused: verdict.refusedToLearn = true
      }
    }
    let destination = frame.link.destination
    // A bridge's own: spanning tree, pauses, link aggregation. Guests are no part of that (IEEE 802.1D §7.12.6).
    if destination & 0xf0ff_ffff_ffff == 0xc2_8001 {
      verdict.counter = .filtered
      return verdict
    }
    if destination & 1 == 0, let target = table.port(of: destination, network: frame.network, now: seconds) {
      if Int(target) == port || !isOpen(from: port, to: Int(target)) {
        verdict.counter = .filtered
      } else {
        give(frame, to: Int(target))
      }
      return verdict
    }
    verdict.counter = flood(frame, from: port)
    return verdict
  }

  /// Whether frames may go from one port to another at all.
  @inline(__always)
  private func isOpen(from: Int, to: Int) -> Bool {
    !(ports[from].configuration.isIsolated && ports[to].configuration.isIsolated)
  }

  private func flood(_ frame: borrowing Frame, from port: Int) -> PortCounter {
    if let floods = ports[port].floods, !floods.take(1, at: now) { return .floodsRefused }
    for target in ports.indices where target != port && isOpen(from: port, to: target) {
      give(frame, to: target)
    }
    return .floods
  }

  @inline(__always)
  private func give(_ frame: borrowing Frame, to target: Int) {
    guard let isTagged = tags(frame.network, at: target), let receiver = ports[target].receiver else {
      return
    }
    if isTagged {
      var tagged = copy frame
      tagged.isTagged = true
      receiver.hand(tagged)
    } else {
      receiver.hand(frame)
    }
  }

  /// How many addresses a port has taught. For tests, on the queue thread or with none.
  func addressCount(port: Int) -> Int { table.count(port: UInt16(port)) }
}

/// Numbers of networks, as bits.
struct NetworkSet {
  private var words = [UInt64](repeating: 0, count: 64)
  /// What a port is in; the transparent network is 0.
  let members: [UInt16]

  init(_ networks: PortNetworks) {
    switch networks {
    case .transparent: members = [0]
    case .access(let number): members = [number]
    case .trunk(let native, let allowed):
      members = allowed.union(native.map { [$0] } ?? []).sorted()
    }
    for number in members { words[Int(number & 0xfff) / 64] |= 1 << UInt64(number % 64) }
  }

  @inline(__always)
  func contains(_ number: UInt16) -> Bool {
    words[Int(number & 0xfff) / 64] >> UInt64(number % 64) & 1 == 1
  }
}
