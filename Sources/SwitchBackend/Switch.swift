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
  private let table: ForwardingTable
  // SAFETY: `portCount` states, and 64 words of network numbers each: made in `init`, released in `deinit`; ports are below
  // the count. Behind a pointer, since an array's element would be copied out, and what it refers to counted, each frame.
  private let ports: UnsafeMutablePointer<PortState>
  private let networks: UnsafeMutablePointer<UInt64>
  private let portCount: Int
  private var seconds: UInt32 = 0
  private var now: UInt64 = 0

  /// A port as the switch sees it.
  private struct PortState {
    /// Tags are part of its frames.
    let isTransparent: Bool
    let isIsolated: Bool
    /// The network of its frames without a tag; `PortState.none`: they are in none.
    let native: UInt16
    /// The only address that its frames may come from; 0: any.
    let source: UInt64
    let floods: TokenBucket?
    var receiver: (QueueDoor<Frame>)?

    static let none = UInt16.max

    init(_ port: PortConfiguration) {
      isTransparent = port.networks == .transparent
      isIsolated = port.isIsolated
      source = port.mac?.value ?? 0
      floods = port.floods.map { TokenBucket($0) }
      switch port.networks {
      case .transparent: native = 0
      case .access(let number): native = number
      case .trunk(let number, _): native = number ?? Self.none
      }
    }
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
    let all = configuration.ports + (configuration.uplink.map { [$0] } ?? [])
    portCount = all.count
    unsafe ports = .allocate(capacity: portCount)
    unsafe networks = .allocate(capacity: portCount * Self.networkWords)
    unsafe networks.initialize(repeating: 0, count: portCount * Self.networkWords)
    for (index, port) in all.enumerated() {
      // SAFETY: index < portCount.
      unsafe (ports + index).initialize(to: PortState(port))
      let members = port.networks.members
      if case .trunk = port.networks { for number in members { allow(number, at: index) } }
      guard let mac = port.mac else { continue }
      for network in members { _ = table.fix(mac.value, network: network, port: UInt16(index)) }
    }
  }

  deinit {
    unsafe ports.deinitialize(count: portCount)
    unsafe ports.deallocate()
    unsafe networks.deallocate()
  }

  // MARK: Networks of trunks

  private static let networkWords = 64

  private func allow(_ number: UInt16, at port: Int) {
    // SAFETY (here and below): numbers are masked to 4096, ports are below the count.
    unsafe networks[port &* Self.networkWords &+ Int(number & 0xfff) / 64] |= 1 << UInt64(number % 64)
  }

  /// Whether frames with the tag of this network may pass a port.
  @inline(__always)
  private func allows(_ number: UInt16, at port: Int) -> Bool {
    unsafe networks[port &* Self.networkWords &+ Int(number & 0xfff) / 64] >> UInt64(number % 64) & 1 == 1
  }

  // MARK: Ports come and go

  // SAFETY (here and below): ports are below the count: they are given out by it.
  func attach(_ receiver: QueueDoor<Frame>, port: Int) { unsafe ports[port].receiver = receiver }

  /// No frame goes to the port from here on.
  func detach(port: Int) { unsafe ports[port].receiver = nil }

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
    if unsafe ports[port].isTransparent { return (0, false) }
    guard let tag, tag != 0 else {
      let native = unsafe ports[port].native
      return native == PortState.none ? nil : (native, true)
    }
    return allows(tag, at: port) ? (tag, true) : nil
  }

  /// Whether a frame of this network carries a tag at a port; nil: the port is not in the network.
  @inline(__always)
  private func tags(_ network: UInt16, at port: Int) -> Bool? {
    if unsafe network == ports[port].native { return false }
    return allows(network, at: port) ? true : nil
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
    let own = unsafe ports[port].source
    if own != 0 {
      guard source == own else { return Verdict(counter: .spoofed) }
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
    unsafe !(ports[from].isIsolated && ports[to].isIsolated)
  }

  private func flood(_ frame: borrowing Frame, from port: Int) -> PortCounter {
    if let floods = unsafe ports[port].floods, !floods.take(1, at: now) { return .floodsRefused }
    for target in 0..<portCount where target != port && isOpen(from: port, to: target) {
      give(frame, to: target)
    }
    return .floods
  }

  @inline(__always)
  private func give(_ frame: borrowing Frame, to target: Int) {
    guard let isTagged = tags(frame.network, at: target), let receiver = unsafe ports[target].receiver else {
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

extension PortNetworks {
  /// The networks that a port is in; the transparent one is 0.
  fileprivate var members: [UInt16] {
    switch self {
    case .transparent: [0]
    case .access(let number): [number]
    case .trunk(let native, let allowed): allowed.union(native.map { [$0] } ?? []).sorted()
    }
  }
}
