// A tap: a network interface whose frames pass through descriptors, one a queue. Opened before the sandbox closes; what is
// done with it later (ioctls on held descriptors, reads, writes) needs no rights. Control thread, but where a word says
// otherwise.

import CLinux
import Glibc
import HostIO
import Synchronization

/// Why a tap cannot be had.
public enum TapError: Error, Equatable, Sendable {
  /// /dev/net/tun cannot be opened.
  case noTunDevice(code: Int32)
  case badName(String)
  case noSuchInterface(String)
  /// An interface of another kind.
  case notATap(String)
  case notPermitted(String)
  /// Another process has it, or all of its queues.
  case inUse(String)
  /// It was made with one queue, and more were asked for.
  case oneQueue(String, wanted: Int)
  case badDescriptor(Int32, why: String)
  case noSuchBridge(String)
  case bridgeRefused(String, code: Int32)
  case system(call: String, code: Int32)
}

/// An open tap with its queues. Closing the last descriptor removes a tap that is not persistent.
public final class Tap: Sendable {
  /// One queue's descriptor.
  final class Queue: Sendable {
    private let file: OwnedFD
    var raw: Int32 { file.raw }
    init(_ file: consuming OwnedFD) { self.file = file }
  }

  public let name: String
  /// At least one.
  let queues: [Queue]
  public let isMultiQueue: Bool
  /// We made it, or an earlier process of ours did that crashed: it goes when the program ends well.
  private let isOurs: Bool
  private let link: Link
  /// What was last asked of the tap, to ask it of one that comes in its place.
  private let settings = Mutex((offload: UInt32(0), headerBytes: Int32(10)))

  public var queueCount: Int { queues.count }
  public var descriptors: [Int32] { queues.map(\.raw) }

  private static let flags = UInt16(CLX_IFF_TAP | CLX_IFF_NO_PI | CLX_IFF_VNET_HDR)
  private static let longestName = Int(CLX_IFNAMSIZ) - 1

  private init(name: String, queues: [Queue], multiQueue: Bool, ours: Bool, link: Link) {
    self.name = name
    self.queues = queues
    isMultiQueue = multiQueue
    isOurs = ours
    self.link = link
  }

  /// What is done with a tap while it serves.
  private static var controls: Set<UInt32> {
    // SAFETY: an array of that many constants.
    unsafe withUnsafeBytes(of: clx_tap_controls) { unsafe Set($0.bindMemory(to: UInt32.self)) }
  }

  /// What a device on a tap needs in the sandbox.
  package static var sandboxNeeds: SandboxNeeds {
    SandboxNeeds(calls: [.readv, .writev], controls: controls)
  }

  // MARK: Opening

  /// Opens an existing tap with so many queues; with `create`, makes it where it does not exist, persistent, up and marked as
  /// ours, or takes one up with that mark, which an earlier process left behind. One that somebody else made is used as it is.
  public static func open(name: String, queues count: Int, create: Bool) throws(TapError) -> Tap {
    guard !name.isEmpty, name.utf8.count <= longestName, name != ".", name != "..",
      name.utf8.allSatisfy({ $0 > 0x20 && $0 != UInt8(ascii: "/") && $0 != UInt8(ascii: ":") && $0 != 0x7f })
    else { throw .badName(name) }
    let link = try Link(name: name)
    let exists = link.index != nil
    if exists {
      guard link.isTap != false else { throw .notATap(name) }
    } else if !create {
      throw .noSuchInterface(name)
    }
    // One queue: of a tap that was made with several, if need be.
    var multiQueue = count > 1
    let patience = ContinuousClock.now + handover
    var opened: [Queue] = []
    for index in 0..<max(1, count) {
      let queue = try openQueue()
      if attach(queue, name, multiQueue, until: patience) {
        opened.append(queue)
        continue
      }
      let code = errno
      if index == 0, exists, code == EINVAL {
        let other = try openQueue()
        if attach(other, name, !multiQueue) {
          guard count == 1 else { throw .oneQueue(name, wanted: count) }
          multiQueue = true
          opened.append(other)
          continue
        }
      }
      throw refusal(of: name, code)
    }
    // A tap that lasts was there before, whatever its name said a moment ago.
    let lasts = try facts(of: opened[0].raw).flags & UInt16(CLX_IFF_PERSIST) != 0
    let isNew = !exists && !lasts
    let isOurs = create && (isNew || link.alias == mark)
    let tap = Tap(name: name, queues: opened, multiQueue: multiQueue, ours: isOurs, link: link)
    if isOurs { try tap.keep(isNew: isNew) }
    tap.parkQueues()
    return tap
  }

  /// The alias of a tap that `create` made: what tells it from another's.
  private static let mark = "made by vhost-swiftd"

  /// Takes over descriptors that are attached to queues of one tap.
  public static func adopt(_ descriptors: [Int32]) throws(TapError) -> Tap {
    var queues: [Queue] = []
    var first: (name: String, flags: UInt16)?
    for descriptor in descriptors {
      let (name, flags) = try facts(of: descriptor)
      if let first, first.name != name {
        throw .badDescriptor(descriptor, why: "of tap '\(name)', the first one is of '\(first.name)'")
      }
      first = first ?? (name, flags)
      let mode = clx_fcntl_int(descriptor, F_GETFL, 0)
      _ = clx_fcntl_int(descriptor, F_SETFL, Int(mode | O_NONBLOCK))
      _ = clx_fcntl_int(descriptor, F_SETFD, Int(FD_CLOEXEC))
      queues.append(Queue(OwnedFD(adopting: descriptor)))
    }
    guard let first else { throw .badDescriptor(-1, why: "none is given") }
    let tap = Tap(
      name: first.name, queues: queues, multiQueue: first.flags & UInt16(CLX_IFF_MULTI_QUEUE) != 0,
      ours: false,
      link: try Link(name: first.name))
    tap.parkQueues()
    return tap
  }

  private static func facts(of descriptor: Int32) throws(TapError) -> (name: String, flags: UInt16) {
    var flags: UInt16 = 0
    var name = [CChar](repeating: 0, count: Int(CLX_IFNAMSIZ) + 1)
    // SAFETY: fills at most 16 of the array's 17 bytes, and the local value.
    let code = unsafe name.withUnsafeMutableBufferPointer {
      unsafe clx_tap_facts(descriptor, $0.baseAddress, &flags)
    }
    guard code == 0 else {
      throw .badDescriptor(descriptor, why: errno == EBADF ? "not open" : "not a tap's")
    }
    guard flags & UInt16(CLX_IFF_TAP) != 0 else {
      throw .badDescriptor(descriptor, why: "of a tun, not of a tap")
    }
    guard flags & UInt16(CLX_IFF_VNET_HDR) != 0, flags & UInt16(CLX_IFF_NO_PI) != 0 else {
      throw .badDescriptor(descriptor, why: "opened without IFF_VNET_HDR and IFF_NO_PI")
    }
    let bytes = name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
    return (String(decoding: bytes, as: UTF8.self), flags)
  }

  private static func openQueue() throws(TapError) -> Queue {
    // SAFETY: a constant path.
    let raw = unsafe clx_open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC, 0)
    guard raw >= 0 else { throw .noTunDevice(code: errno) }
    return Queue(OwnedFD(adopting: raw))
  }

  /// How long a tap that is in use is waited for. The kernel takes a killed process's rings apart a while after its end is
  /// seen, and its tap goes with them.
  private static let handover = Duration.seconds(2)

  private static func attach(
    _ queue: Queue, _ name: String, _ multiQueue: Bool, until patience: ContinuousClock.Instant
  ) -> Bool {
    while !attach(queue, name, multiQueue) {
      guard errno == EBUSY || errno == E2BIG, ContinuousClock.now < patience else { return false }
      // Nobody tells when it is free: look again soon.
      _ = poll(nil, 0, 20)
    }
    return true
  }

  private static func attach(_ queue: Queue, _ name: String, _ multiQueue: Bool) -> Bool {
    // SAFETY: a NUL-terminated copy of the name.
    unsafe clx_tap_attach(queue.raw, name, flags | (multiQueue ? UInt16(CLX_IFF_MULTI_QUEUE) : 0)) == 0
  }

  private static func refusal(of name: String, _ code: Int32) -> TapError {
    switch code {
    case EPERM, EACCES: .notPermitted(name)
    case EBUSY, E2BIG: .inUse(name)
    case EINVAL: .notATap(name)
    default: .system(call: "TUNSETIFF '\(name)'", code: code)
    }
  }

  /// Makes a tap of ours outlive this process, should it crash, and takes it into service. It is marked before it lasts: no
  /// end of this process, wherever it comes, leaves one that nobody knows for ours.
  private func keep(isNew: Bool) throws(TapError) {
    guard !isNew || link.setAlias(Self.mark) else { throw .system(call: "marking '\(name)'", code: errno) }
    guard clx_tap_set_persistent(queues[0].raw, 1) == 0 else {
      throw .system(call: "TUNSETPERSIST '\(name)'", code: errno)
    }
    guard link.setUp() else {
      let code = errno
      retire()
      throw code == EPERM ? .notPermitted(name) : .system(call: "setting '\(name)' up", code: code)
    }
  }

  /// Puts the tap into a bridge that exists.
  public func join(bridge: String) throws(TapError) {
    guard bridge.utf8.count <= Self.longestName, !bridge.isEmpty else { throw .badName(bridge) }
    let other = try Link(name: bridge)
    guard other.index != nil else { throw .noSuchBridge(bridge) }
    guard let index = link.index else { throw .noSuchInterface(name) }
    if !other.addToBridge(index) {
      let code = errno
      // In that bridge already: after a crash, say. In another one it is refused here too, by the same code.
      if code == EBUSY, other.hasPort(index) { return }
      throw .bridgeRefused(bridge, code: code)
    }
  }

  // MARK: While it serves

  /// Tells the tap what frames may look like, and holds it to that: header size and offloads.
  package func agree(headerBytes: Int, offload: UInt32) throws(TapError) {
    settings.withLock { $0 = (offload, Int32(headerBytes)) }
    let raw = queues[0].raw
    guard clx_tap_set_header_size(raw, Int32(headerBytes)) == 0 else {
      throw .system(call: "TUNSETVNETHDRSZ \(headerBytes)", code: errno)
    }
    var now: Int32 = 0
    // SAFETY: fills the local value.
    guard unsafe clx_tap_header_size(raw, &now) == 0, now == Int32(headerBytes) else {
      throw .system(call: "TUNGETVNETHDRSZ", code: EINVAL)
    }
    guard clx_tap_set_offload(raw, offload) == 0 else {
      throw .system(call: "TUNSETOFFLOAD 0x\(String(offload, radix: 16))", code: errno)
    }
  }

  /// The same for the offloads alone.
  func setOffload(_ offload: UInt32) {
    settings.withLock { $0.offload = offload }
    _ = clx_tap_set_offload(queues[0].raw, offload)
  }

  /// No guest is there: nothing may be left undone in frames.
  package func forget() { _ = clx_tap_set_offload(queues[0].raw, 0) }

  /// Whether the kernel knows UDP segmentation (6.2). Asked before anything is served.
  var segmentsUDP: Bool {
    let knows = clx_tap_set_offload(queues[0].raw, TapOffload.checksum | TapOffload.uso) == 0
    forget()
    return knows
  }

  /// Takes a queue into service, or out of it: the kernel sends nothing to one that is out.
  func setQueue(_ index: Int, attached: Bool) {
    // The first one stays: without any, the interface has no carrier.
    guard isMultiQueue, index > 0, index < queues.count else { return }
    _ = clx_tap_set_queue(queues[index].raw, attached ? 1 : 0)
  }

  /// All queues but the first are out of service until somebody wants them.
  private func parkQueues() { for index in queues.indices { setQueue(index, attached: false) } }

  /// The interface was removed; perhaps there is another one of its name by now. Whether the queue is attached. Any thread.
  func reattach(_ index: Int) -> Bool {
    guard index < queues.count else { return false }
    if (try? Self.facts(of: queues[index].raw)) != nil { return true }
    // It must exist: attaching to a name that does not would make an interface.
    guard link.index != nil, Self.attach(queues[index], name, isMultiQueue) else { return false }
    let wanted = settings.withLock { $0 }
    _ = clx_tap_set_header_size(queues[index].raw, wanted.headerBytes)
    _ = clx_tap_set_offload(queues[index].raw, wanted.offload)
    return true
  }

  /// Sends one frame that no guest made. Any thread.
  func inject(_ frame: [UInt8]) {
    let header = settings.withLock { Int(max(10, $0.headerBytes)) }
    let bytes = [UInt8](repeating: 0, count: header) + frame
    // SAFETY: writes from the array's own storage. A frame that cannot be sent is lost, as any may be.
    _ = unsafe bytes.withUnsafeBytes { unsafe write(queues[0].raw, $0.baseAddress, $0.count) }
  }

  /// Whether it takes whatever is sent while it is up: nobody has set a bound (TUNSETSNDBUF). Any thread.
  public var takesAll: Bool {
    var bytes: Int32 = 0
    // SAFETY: fills the local value.
    return unsafe clx_tap_send_buffer(queues[0].raw, &bytes) == 0 && bytes == .max
  }

  /// Whether frames can come and go; true where that cannot be told.
  var isUp: Bool { link.isUp ?? true }
  var mtu: Int { link.mtu ?? 1500 }
  var speed: (megabits: UInt32, duplex: UInt8) { link.speed ?? (.max, 0xff) }

  /// Lets a tap of ours go with its last descriptor. Any thread.
  public func retire() { if isOurs { _ = clx_tap_set_persistent(queues[0].raw, 0) } }
}
