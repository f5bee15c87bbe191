// What a device author writes: a `VirtioDevice` (control side, called by the control thread) and one or more
// `QueueWorker`s (data side, each on its queue's thread). Nothing here knows the wire, or which ring format is in use.

import HostIO
import VirtQueue

/// What a device is, in numbers and names.
public struct DeviceIdentity: Sendable {
  /// The virtio device id (virtio 1.3 §5): 1 net, 2 block, 4 entropy.
  public let id: UInt16
  /// Short, for logs, thread names and statistics.
  public let name: String
  /// How many queues a front-end may use.
  public let queueLimit: Int
  /// Names of the device's own counters; workers add to them by index (`QueueIO.count`).
  public let counters: [String]

  public init(id: UInt16, name: String, queueLimit: Int, counters: [String] = []) {
    self.id = id
    self.name = name
    self.queueLimit = queueLimit
    self.counters = counters
  }
}

/// Why a device refuses.
public enum DeviceError: Error, Equatable, Sendable {
  /// A configuration field that the driver may not write, or a value it may not have.
  case configRefused(offset: Int, count: Int)
  /// The queue cannot be served; the reason in words.
  case startRefused(String)
  /// A state that this device cannot have been in; the reason in words.
  case stateRefused(String)
}

/// A paravirtual device. Its methods are called by one control thread at a time, never on the data path.
public protocol VirtioDevice: AnyObject, Sendable {
  var identity: DeviceIdentity { get }
  /// The device's own feature bits (0 to 23, 50 to 63), offered as long as the device lives. Bits of the ring and the
  /// transport are added by what serves it.
  var features: FeatureSet { get }
  /// Descriptors that workers do I/O on. They are registered with every queue thread before a front-end is served;
  /// a worker names them by `QueueStart.files`, in this order.
  var descriptors: [Int32] { get }

  /// Whether workers call `QueueIO.offload`.
  var needsHelper: Bool { get }

  /// Whether the guest's memory is to be held in place, so that I/O need not look its pages up. Balloons then take nothing
  /// from the guest, and would leave it zeros.
  var pinsMemory: Bool { get }

  /// System calls that the device makes while it serves, beside its queues' I/O through the ring.
  var sandboxNeeds: SandboxNeeds { get }

  /// Whether the device may work behind an IOMMU (VIRTIO_F_ACCESS_PLATFORM). A front-end that takes memory away waits until
  /// every chain in it is completed: so only where each chain that a worker takes ends by itself, and does not wait for the
  /// outside, as a network card's receive buffers do.
  var supportsIOMMU: Bool { get }

  /// Writes the device's configuration space, from its start.
  func readConfig(_ out: inout ConfigWriter)
  /// The driver writes bytes of it.
  func writeConfig(_ bytes: RawSpan, at offset: Int) throws(DeviceError)
  /// The driver's choice of features; sent before queues start, and maybe again.
  func negotiated(_ features: FeatureSet)
  /// What of the device's state must outlive the process beside its rings: the driver will not say it again. Kept
  /// with the inflight log, where the front-end has one.
  var savedState: UInt64 { get }
  /// An earlier process served this driver. Nil: what it knew is lost, and the safest must be assumed.
  func restore(_ savedState: UInt64?)
  /// What another process, on another machine, needs to go on with this driver. No queue runs.
  func saveState() -> DeviceState
  /// Takes over such a state, which may be anybody's: checked whole before anything is changed. No queue runs. It comes
  /// again after `negotiated`, where the driver's choice becomes known later than the state.
  func loadState(_ state: DeviceState) throws(DeviceError)
  /// The first queue is about to start; throws where the device cannot be had now.
  func willRun() throws(DeviceError)
  /// The last queue has stopped, and its I/O has ended.
  func didStop()
  /// A queue is to be served: end with `queue.run { worker }`.
  func start(_ queue: consuming QueueStart) throws(DeviceError)
  /// A queue has started, stopped, or was enabled or disabled: whether the front-end has it running and enabled now.
  func setQueue(_ index: Int, isServed: Bool)
  /// Which queues share a thread: those of one group do; groups are spread over the threads in turn.
  func group(of queue: Int) -> Int
  /// Tells the network where the guest is now (VHOST_USER_SEND_RARP), by the address it is known under: six bytes, the
  /// first one lowest. Called only where `announces`.
  func announce(_ address: UInt64)
  var announces: Bool { get }
  /// The front-end's limit to the size of packets (VHOST_USER_NET_SET_MTU); false where that cannot be. Called only where
  /// `limitsPackets`.
  func setPacketLimit(_ bytes: UInt16) -> Bool
  var limitsPackets: Bool { get }
  /// Back to the state before the first driver. No queue runs at this time.
  func reset()
  /// The program ends as it was asked to: what was made for the device outside this process is taken away again. Nothing
  /// runs any more, or nobody waits for it.
  func retire()
}

extension VirtioDevice {
  public var descriptors: [Int32] { [] }
  public var needsHelper: Bool { false }
  public var pinsMemory: Bool { false }
  public var sandboxNeeds: SandboxNeeds { SandboxNeeds() }
  public var supportsIOMMU: Bool { false }
  public func readConfig(_ out: inout ConfigWriter) {}
  public func writeConfig(_ bytes: RawSpan, at offset: Int) throws(DeviceError) {
    throw .configRefused(offset: offset, count: bytes.byteCount)
  }
  public func negotiated(_ features: FeatureSet) {}
  public func willRun() throws(DeviceError) {}
  public func didStop() {}
  public var savedState: UInt64 { 0 }
  public func restore(_ savedState: UInt64?) {}
  public func setQueue(_ index: Int, isServed: Bool) {}
  public func group(of queue: Int) -> Int { queue }
  public func announce(_ address: UInt64) {}
  public var announces: Bool { false }
  public func setPacketLimit(_ bytes: UInt16) -> Bool { false }
  public var limitsPackets: Bool { false }
  public func reset() {}
  public func retire() {}
}

/// Serves one queue. Made on the queue's thread, lives and dies there, and needs no lock.
///
/// A chain taken with `q.next()` is completed, or held by its head while I/O runs and completed when that is done.
public protocol QueueWorker: ~Copyable, SendableMetatype {
  /// Chains may be available: take what `q.next()` gives, until nil.
  mutating func service<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>)
  /// One operation that this worker submitted has ended.
  mutating func completed<R: VirtRing & ~Copyable>(_ completion: Completion, _ q: inout QueueIO<R>)
  /// Whether a chain that comes while the thread sleeps wakes it. A worker that takes its chains only when something comes from
  /// elsewhere does without, and its driver without kicks.
  static var wantsKicks: Bool { get }
  /// Whether `service` would take a chain now. One that leaves chains where they are until something has ended says so
  /// here: they keep no thread awake.
  var wantsChains: Bool { get }
  /// Whether `serviceDisabled` is called in place of `service` while the front-end has the queue disabled. Else nothing is.
  static var servesDisabled: Bool { get }
  mutating func serviceDisabled<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>)
  /// The queue is being stopped and gives no more chains. What has no end of its own (a poll, a chain that waits for the
  /// outside) is to be ended here; the queue has stopped when no chain and no operation is left.
  mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>)
}

extension QueueWorker where Self: ~Copyable {
  public mutating func completed<R: VirtRing & ~Copyable>(_ completion: Completion, _ q: inout QueueIO<R>) {}
  @inlinable public static var wantsKicks: Bool { true }
  @inlinable public var wantsChains: Bool { true }
  @inlinable public static var servesDisabled: Bool { false }
  public mutating func serviceDisabled<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {}
  public mutating func drain<R: VirtRing & ~Copyable>(_ q: inout QueueIO<R>) {}
}

/// Collects configuration bytes. Little-endian, as modern drivers and legacy ones on x86 read them.
public struct ConfigWriter: Sendable {
  public private(set) var bytes: [UInt8] = []
  public init() {}

  /// Appends an integer at the next offset.
  public mutating func append<T: FixedWidthInteger & Sendable>(_ value: T) {
    var rest = value
    for _ in 0..<(T.bitWidth / 8) {
      bytes.append(UInt8(truncatingIfNeeded: rest))
      rest = T.bitWidth > 8 ? rest >> 8 : 0
    }
  }

  /// Appends zero bytes.
  public mutating func pad(_ count: Int) { for _ in 0..<max(0, count) { bytes.append(0) } }
}
