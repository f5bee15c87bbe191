// A driver's sessions with the device in this process: one queue of a card over a tap. One thread, and the queue's.

import CLinux
import DeviceKit
import Glibc
import HostIO
import NetBackend
import VhostFrontend
import VirtQueue

enum NetBenchError: Error {
  case noThread
  case noSocket(code: Int32)
  /// A frame did not come through.
  case stalled
}

/// One queue of a card, from its start to `stop`.
final class Session {
  static let size: UInt16 = 256
  /// Not the program's, which is the name of its first thread.
  private static let name = "queue"
  /// Where frames are handled: the driver and the sender of frames run elsewhere (`taskset`), as a guest does.
  static let cpus = [0]

  private let device: NetDevice
  private let host: DeviceHost
  private let index: Int
  let thread: QueueThread
  let clock: ThreadClock
  let arena: GuestArena
  var driver: SplitDriverRing
  private let kick: Doorbell
  /// 128 KiB of the guest's memory.
  let place: UInt64

  init(
    _ tap: Tap, queue index: Int, features wanted: FeatureSet, policy: PollPolicy, usesRing: Bool = false
  ) throws {
    var options = NetDevice.Options()
    options.usesRing = usesRing
    device = NetDevice(place: .tap(tap), options: options)
    thread = try QueueThread(
      name: Self.name, cpus: Self.cpus, policy: policy, seats: DeviceHost.seats(for: device, threads: 1),
      files: device.descriptors.count)
    host = try DeviceHost(device: device, threads: [thread])
    _ = try thread.start()
    self.index = index
    let features = wanted.union(.version1)
    device.negotiated(features)
    arena = try GuestArena(bytes: 4 << 20)
    driver = try SplitDriverRing(DriverRingOptions(size: Self.size, eventIndex: true), in: arena)
    kick = try Doorbell()
    place = try arena.allocate(128 << 10, alignment: 4096)
    let areas = driver.areas
    let failure = host.start(
      index,
      QueueSetup(
        layout: RingLayout(
          size: Self.size, descriptorArea: arena.userAddress(of: areas.descriptors),
          driverArea: arena.userAddress(of: areas.driver), deviceArea: arena.userAddress(of: areas.device),
          base: driver.base, indirect: false, eventIndex: true),
        features: features, map: try Self.map(of: arena), enabled: true, kick: kick.raw, call: nil,
        onFault: { _ in }))
    if let failure { throw failure }
    guard let clock = ThreadClock(of: Self.name) else { throw NetBenchError.noThread }
    self.clock = clock
  }

  func publish() {
    driver.publish()
    if driver.needsKick() { kick.ring() }
  }

  func stop() {
    _ = host.stop([index])
    thread.finish()
  }

  private final class Keeper: Sendable {}

  private static func map(of arena: GuestArena) throws -> GuestMemoryMap {
    let regions = try arena.table.map { region in
      // SAFETY: the arena outlives the queue, and the map is used by it alone.
      unsafe GuestRegion(
        guestAddress: region.guestAddress, size: region.size, userAddress: region.userAddress,
        host: try arena.pointer(to: region.guestAddress, bytes: Int(region.size)), owner: Keeper())
    }
    return try GuestMemoryMap(generation: 1, regions: regions)
  }
}

/// The guest sends: the driver is ahead of the device all the time.
final class Transmission {
  private let session: Session
  private let chain: [DescriptorSpec]

  init(_ tap: Tap, _ frame: Frame, usesRing: Bool) throws {
    session = try Session(
      tap, queue: 1, features: [NetFeature.checksum, NetFeature.hostTSO4], policy: .adaptive,
      usesRing: usesRing)
    try session.arena.write(frame.content, at: session.place)
    // As Linux does: a header of its own, and the frame.
    chain = [
      DescriptorSpec(session.place, 12),
      DescriptorSpec(session.place + 12, UInt32(frame.content.count - 12)),
    ]
  }

  /// Nanoseconds of the queue thread's processor time a frame.
  func run(_ count: Int) throws -> Double {
    let chain = chain
    let before = session.clock.now
    var added = 0
    var used = 0
    while used < count {
      while added < count, session.driver.freeDescriptors >= 2,
        session.driver.add(chain.span, table: .direct) != nil
      { added += 1 }
      session.publish()
      while session.driver.poll() != nil { used += 1 }
    }
    let spent = session.clock.now - before
    session.stop()
    return Double(spent) / Double(count)
  }
}

/// The guest receives. The tap's queue is filled first and emptied then, so that what is measured is reading alone.
final class Reception {
  static let batch = 128
  private let tap: Tap
  private let frame: Frame
  private let source: OwnedFD
  private let session: Session

  init(_ tap: Tap, _ frame: Frame) throws {
    self.tap = tap
    self.frame = frame
    session = try Session(
      tap, queue: 0, features: [NetFeature.guestChecksum, NetFeature.guestTSO4], policy: .interrupt)
    let link = OwnedFD(adopting: clx_link_socket())
    var index: Int32 = 0
    // SAFETY: a NUL-terminated copy of the name; fills the local value.
    guard unsafe clx_link_index(link.raw, tap.name, &index) == 0 else {
      throw NetBenchError.noSocket(code: errno)
    }
    source = OwnedFD(adopting: clx_packet_socket(index))
    guard source.raw >= 0 else { throw NetBenchError.noSocket(code: errno) }
  }

  /// Nanoseconds of processor time a frame: the queue thread's, and a bare loop's on the same tap.
  func run(_ count: Int) throws -> (ours: Double, bare: Double) {
    let rounds = max(1, count / Self.batch)
    var ours: UInt64 = 0
    for _ in 0..<rounds {
      try send()
      try rest()
      let before = session.clock.now
      try receive()
      ours += session.clock.now - before
    }
    session.stop()
    // The device took its offloads with it: checksums and TSO over IPv4.
    guard clx_tap_set_offload(tap.descriptors[0], 3) == 0 else { throw NetBenchError.stalled }
    var bare: UInt64 = 0
    for _ in 0..<rounds {
      try send()
      bare += try readAll()
    }
    let frames = Double(rounds * Self.batch)
    return (Double(ours) / frames, Double(bare) / frames)
  }

  /// Puts a batch into the tap's queue.
  private func send() throws {
    // A packet socket's header has no count of buffers.
    let bytes = Array(frame.content[..<10] + frame.content[12...])
    for _ in 0..<Self.batch {
      // SAFETY: writes from the array's own storage.
      let sent = unsafe bytes.withUnsafeBytes { unsafe write(source.raw, $0.baseAddress, $0.count) }
      guard sent == bytes.count else { throw NetBenchError.noSocket(code: errno) }
    }
  }

  /// Waits until the queue's thread does nothing: it was woken by the frames, and had no buffers for them.
  private func rest() throws {
    let limit = Monotonic.now &+ 10_000_000_000
    var seen: UInt64 = 0
    while seen != session.clock.now {
      guard Monotonic.now < limit else { throw NetBenchError.stalled }
      seen = session.clock.now
      _ = poll(nil, 0, 1)
    }
  }

  private func receive() throws {
    for _ in 0..<Self.batch {
      let buffer = [DescriptorSpec(session.place, 66_000, write: true)]
      guard session.driver.add(buffer.span, table: .direct) != nil else { throw NetBenchError.stalled }
    }
    session.publish()
    let limit = Monotonic.now &+ 10_000_000_000
    var used = 0
    while used < Self.batch {
      if session.driver.poll() != nil {
        used += 1
      } else if Monotonic.now > limit {
        throw NetBenchError.stalled
      }
    }
  }

  /// Reads a batch on the processor that the device had, from a thread of its own; nanoseconds.
  private func readAll() throws -> UInt64 {
    let raw = tap.descriptors[0]
    // SAFETY: 66000 bytes of the arena, which this object keeps; the thread is over before the call is.
    let target = try unsafe UInt(bitPattern: session.arena.pointer(to: session.place, bytes: 66_000))
    let reply = Reply<UInt64?>()
    let thread = try PinnedThread(name: "bare", cpus: Session.cpus) {
      let base = unsafe UnsafeMutableRawPointer(bitPattern: target)
      var parts = unsafe (
        iovec(iov_base: base, iov_len: 12), iovec(iov_base: base.map { unsafe $0 + 12 }, iov_len: 66_000 - 12)
      )
      let before = ThreadClock.own.now
      for _ in 0..<Self.batch {
        let got = unsafe withUnsafePointer(to: &parts) {
          unsafe readv(raw, UnsafeRawPointer($0).assumingMemoryBound(to: iovec.self), 2)
        }
        guard got > 0 else { return reply.fulfil(nil) }
      }
      reply.fulfil(ThreadClock.own.now - before)
    }
    thread.join()
    guard let spent = reply.wait() else { throw NetBenchError.stalled }
    return spent
  }
}
