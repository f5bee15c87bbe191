// virtio-net, control side: features, configuration space, what the tap is told. Called by the control thread, by the
// control queue's worker and by whoever watches the link; what they share is under one lock.

import DeviceKit
import HostIO
import Synchronization
import VirtQueue

/// Where a device's frames go.
public enum NetPlace: Sendable {
  case tap(Tap)
  /// Without a kernel device, to measure with: everything is taken; everything, and there is always a frame; each pair
  /// gets its own back.
  case sink, source, loop
}

/// A network card. Its data side is `ReceiveWorker` and `TransmitWorker`.
public final class NetDevice: VirtioDevice {
  public struct Options: Sendable {
    /// The guest's address: told to drivers, and the only one that frames may come from. Nil: any.
    public var mac: MACAddress?
    /// Pairs of queues; a tap has as many queues.
    public var pairs = 1
    public var capture: PacketCapture?
    /// The network that the guest is in; the tap's frames carry its tag.
    public var tag: NetworkTag?
    /// What the guest sends goes to the tap by operations of the thread's ring, not by calls.
    public var usesRing = false
    public init() {}
  }

  struct State {
    var features: FeatureSet = []
    /// By CTRL_GUEST_OFFLOADS; as negotiated at first.
    var offloads: FeatureSet = []
    var mac: MACAddress
    var mtu: UInt16
    var isUp: Bool
    var wantsAnnouncement = false
    var served: Set<Int> = []
    /// Pairs that the driver uses, where it says so to us.
    var activePairs: Int
    /// Pairs whose tap queue is in service.
    var attached: Set<Int> = []
    /// What the driver wants to be given.
    var filter = ReceiveFilter()
  }

  public let identity: DeviceIdentity
  public let features: FeatureSet
  public let place: NetPlace
  /// What frames and bytes are limited to, both ways: of all queues together.
  public let limiter = RateLimiter()
  let pairs: Int
  /// Enforced as the source of every frame.
  let source: MACAddress?
  private let tag: NetworkTag?
  private let capture: PacketCapture?
  private let usesRing: Bool
  private let loops: [LoopChannel]
  /// As the tap said at the start: asking again (SIOCETHTOOL) has no room in the sandbox, which would be room for much else.
  private let speed: (megabits: UInt32, duplex: UInt8)
  let state: Mutex<State>
  /// Where receive queues find `State.filter`.
  let board = FilterBoard()

  public init(place: NetPlace, options: Options) {
    self.place = place
    pairs = options.pairs
    source = options.mac
    tag = options.tag
    capture = options.capture
    usesRing = options.usesRing
    identity = DeviceIdentity(
      id: 1, name: "net", queueLimit: 2 * options.pairs + 1, counters: NetCounter.allCases.map(\.name))
    if case .loop = place { loops = (0..<options.pairs).map { _ in LoopChannel() } } else { loops = [] }
    features = Self.features(place, options)
    var isUp = true
    var mtu: UInt16 = 0
    if case .tap(let tap) = place {
      isUp = tap.isUp
      mtu = UInt16(clamping: tap.mtu)
      speed = tap.speed
    } else {
      speed = (.max, 0xff)
    }
    state = Mutex(
      State(mac: options.mac ?? MACAddress(value: 0), mtu: mtu, isUp: isUp, activePairs: options.pairs))
  }

  private static func features(_ place: NetPlace, _ options: Options) -> FeatureSet {
    var features: FeatureSet = [
      .inOrder, NetFeature.mergeable, NetFeature.status, NetFeature.controlQueue, NetFeature.guestAnnounce,
      NetFeature.controlReceive, NetFeature.controlReceiveExtra, NetFeature.controlVLAN,
    ]
    if options.mac != nil { features.insert(NetFeature.mac) } else { features.insert(NetFeature.controlMAC) }
    if options.pairs > 1 { features.insert(NetFeature.multiQueue) }
    switch place {
    case .tap(let tap):
      features.formUnion(NetFeature.send.union(NetFeature.receive).union(NetFeature.guestOffloads))
      if tap.segmentsUDP { features.formUnion(NetFeature.udpSegmentation) }
      if (68...65535).contains(tap.mtu) { features.insert(NetFeature.mtu) }
      features.insert(NetFeature.speedDuplex)
    case .loop:
      // What comes back is what was sent: a driver that takes less than it leaves undone would get frames it cannot use.
      break
    case .sink, .source: features.formUnion(NetFeature.send)
    }
    return features
  }

  public var descriptors: [Int32] {
    if case .tap(let tap) = place { return tap.descriptors }
    return []
  }

  /// Not behind an IOMMU: the receive window holds buffers until frames come, so memory could not be taken away from it. And
  /// DPDK's virtio-user takes ACCESS_PLATFORM up wherever it is offered, without translating anything.
  public var supportsIOMMU: Bool { false }

  public var sandboxNeeds: SandboxNeeds {
    if case .tap = place { return Tap.sandboxNeeds }
    return SandboxNeeds()
  }

  /// A pair's two queues are one thread's.
  public func group(of queue: Int) -> Int { queue / 2 }

  private func terms(for features: FeatureSet) -> NetTerms {
    NetTerms(features: features, mtu: state.withLock { $0.mtu })
  }

  // MARK: Configuration

  public func readConfig(_ out: inout ConfigWriter) {
    let (state, isAnnounceable) = state.withLock { ($0, $0.features.contains(NetFeature.guestAnnounce)) }
    for byte in state.mac.bytes { out.append(byte) }
    out.append(UInt16((state.isUp ? 1 : 0) | (state.wantsAnnouncement && isAnnounceable ? 2 : 0)))
    out.append(UInt16(pairs))
    out.append(state.mtu)
    out.append(speed.megabits)
    out.append(speed.duplex)
  }

  /// Only a legacy driver may write, and only its address (virtio 1.3 §5.1.4.1).
  public func writeConfig(_ bytes: RawSpan, at offset: Int) throws(DeviceError) {
    let isLegacy = state.withLock { !$0.features.contains(.version1) }
    guard isLegacy, source == nil, offset >= 0, offset < 6, offset + bytes.byteCount <= 6 else {
      throw .configRefused(offset: offset, count: bytes.byteCount)
    }
    state.withLock { state in
      var value = state.mac.value
      for i in 0..<bytes.byteCount {
        // SAFETY: i is below the span's count.
        let byte = unsafe UInt64(bytes.unsafeLoad(fromByteOffset: i, as: UInt8.self))
        let shift = UInt64(8 * (offset + i))
        value = value & ~(0xff << shift) | byte << shift
      }
      state.mac = MACAddress(value: value)
      state.filter.address = value
      board.set(state.filter)
    }
  }

  public func negotiated(_ features: FeatureSet) {
    let isNew = state.withLock { state in
      guard state.features != features else { return false }
      state.features = features
      state.offloads = features.intersection(NetFeature.changeable)
      let isToldPairs = features.isSuperset(of: [NetFeature.multiQueue, NetFeature.controlQueue])
      state.activePairs = isToldPairs ? 1 : pairs
      state.filter = ReceiveFilter(limitsNetworks: features.contains(NetFeature.controlVLAN))
      state.filter.address = state.mac.value
      board.set(state.filter)
      return true
    }
    // Where queues run, they go on under what they were started with; the header's size stays.
    if isNew, case .tap(let tap) = place, !state.withLock({ $0.served.isEmpty }) { tellOffloads(tap) }
  }

  func tellOffloads(_ tap: Tap) {
    tap.setOffload(NetTerms.tapOffload(state.withLock { $0.offloads }))
  }

  // MARK: Queues

  public func willRun() throws(DeviceError) {
    guard case .tap(let tap) = place else { return }
    let (features, offloads) = state.withLock { ($0.features, $0.offloads) }
    do {
      try tap.agree(
        headerBytes: terms(for: features).layout.byteCount, offload: NetTerms.tapOffload(offloads))
    } catch {
      throw .startRefused("tap '\(tap.name)': \(error)")
    }
  }

  public func didStop() {
    if case .tap(let tap) = place { tap.forget() }
  }

  public func start(_ queue: consuming QueueStart) throws(DeviceError) {
    let features = queue.features
    let index = queue.index
    // Without MQ the control queue follows the first pair (virtio 1.3 §5.1.2).
    let control = features.contains(NetFeature.multiQueue) ? 2 * pairs : 2
    if features.contains(NetFeature.controlQueue), index == control {
      queue.run { [self] in ControlWorker(device: self) }
      return
    }
    guard index < 2 * pairs else { throw .startRefused("queue \(index) of \(pairs) pairs") }
    let terms = terms(for: features)
    let pair = index / 2
    switch place {
    case .tap(let tap):
      let file = pair < queue.files.count ? queue.files[pair] : nil
      if usesRing, index % 2 == 1, let file {
        let (size, capture) = (queue.size, capture)
        let frame = OutgoingFrame(terms: terms, source: source, tag: tag)
        queue.run { [limiter] in
          RingTransmitWorker(
            tap, queue: pair, file: file, size: size, frame: frame, limiter: limiter, capture: capture)
        }
        return
      }
      serve(queue, terms, linkMTU: tap.mtu) { TapPort(tap, queue: pair, file: file) }
    case .sink: serve(queue, terms, linkMTU: 1500) { SinkPort() }
    case .source:
      let header = terms.layout.byteCount
      serve(queue, terms, linkMTU: 1500) { SourcePort(header: header) }
    case .loop:
      let channel = loops[pair]
      let isFirst = index % 2 == 0
      serve(queue, terms, linkMTU: 1500) {
        // What an earlier driver sent is not for this one.
        if isFirst { channel.clear() }
        return LoopPort(channel: channel)
      }
    }
  }

  private func serve<Port: PacketPort & ~Copyable>(
    _ queue: consuming QueueStart, _ terms: NetTerms, linkMTU: Int, _ port: @escaping @Sendable () -> Port
  ) {
    let (size, capture) = (queue.size, capture)
    if queue.index % 2 == 0 {
      let setup = ReceiveSetup(
        linkMTU: linkMTU, tag: tag, filter: board, limiter: limiter, capture: capture)
      queue.run { ReceiveWorker(port: port(), terms: terms, size: size, setup) }
    } else {
      let frame = OutgoingFrame(terms: terms, source: source, tag: tag)
      queue.run { [limiter] in
        TransmitWorker(port: port(), frame: frame, limiter: limiter, capture: capture)
      }
    }
  }

  /// A pair is in service while its receive queue is, and the driver uses it.
  public func setQueue(_ index: Int, isServed: Bool) {
    state.withLock { if isServed { $0.served.insert(index) } else { $0.served.remove(index) } }
    settleQueues()
  }

  func settleQueues() {
    guard case .tap(let tap) = place, pairs > 1 else { return }
    state.withLock { state in
      for pair in 0..<pairs {
        let wanted = state.served.contains(2 * pair) && pair < state.activePairs
        guard wanted != state.attached.contains(pair) else { continue }
        tap.setQueue(pair, attached: wanted)
        if wanted { state.attached.insert(pair) } else { state.attached.remove(pair) }
      }
    }
  }

  // MARK: What the front-end and the host ask

  public var announces: Bool { if case .tap = place { true } else { false } }
  public var limitsPackets: Bool { if case .tap = place { true } else { false } }

  public func announce(_ address: UInt64) {
    guard case .tap(let tap) = place else { return }
    var frame = EthernetFrame.announcement(of: MACAddress(value: address))
    if let tag { frame.insert(contentsOf: tag.bytes, at: 12) }
    tap.inject(frame)
  }

  /// The tap is never changed: a limit above its own cannot be.
  public func setPacketLimit(_ bytes: UInt16) -> Bool {
    guard case .tap(let tap) = place, bytes >= 68, Int(bytes) <= tap.mtu else { return false }
    state.withLock { $0.mtu = bytes }
    return true
  }

  /// Looks at the interface again; true where drivers have something to read. Any thread. A link that comes back may lead
  /// elsewhere: the guest is to say where it is.
  public func refreshLink() -> Bool {
    guard case .tap(let tap) = place else { return false }
    let isUp = tap.isUp
    return state.withLock { state in
      guard state.isUp != isUp else { return false }
      state.isUp = isUp
      if isUp { state.wantsAnnouncement = true }
      return true
    }
  }

  public func reset() {
    state.withLock { state in
      state.features = []
      state.offloads = []
      state.activePairs = pairs
      state.wantsAnnouncement = false
      if source == nil { state.mac = MACAddress(value: 0) }
      state.filter = ReceiveFilter()
      board.set(state.filter)
    }
    settleQueues()
  }

  public func retire() { if case .tap(let tap) = place { tap.retire() } }
}
