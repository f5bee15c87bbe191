// Guest to guest: frames through `vhost-swiftd switch`, and through two `vhost-swiftd net`, two taps and the kernel's bridge, in
// turn. One client drives both ends and polls; servers have a processor of their own, the same for both ways. Each way has as many
// frames under way as suits it best. As root: the taps are in a network namespace of their own.

import Foundation
import GuestHarness
import VhostFrontend

enum SwitchPairs {
  /// Frames of each size both ways in turn: A B A B.
  static func measure(_ pace: Pace) throws -> [Finding] {
    let namespace = try NetworkNamespace()
    let ways = [try Way.switched(namespace), try Way.bridged(namespace)]
    defer { for way in ways { way.stop() } }
    var findings: [Finding] = []
    for bytes in [64, 1518] {
      var rate = Finding("guest to guest, \(bytes) B", "rate", "packets/s", higherIsBetter: true)
      var cost = Finding(
        "guest to guest, \(bytes) B, servers' time", "cpu", "ns a packet", higherIsBetter: false)
      for _ in 0..<pace.rounds {
        let (ours, theirs) = (
          try ways[0].run(bytes: bytes, milliseconds: pace.milliseconds),
          try ways[1].run(bytes: bytes, milliseconds: pace.milliseconds)
        )
        rate.ours.append(ours.rate)
        rate.peer.append(theirs.rate)
        cost.ours.append(ours.cost)
        cost.peer.append(theirs.cost)
      }
      findings += [rate, cost]
    }
    return findings
  }
}

/// Two ends of a network, and the processes that are between them.
final class Way {
  private let servers: [ChildProcess]
  private let folder: TemporaryFolder
  private let sender: Card
  private let receiver: Card
  /// Frames under way at most: what the queues between the two ends hold, so that none is sent in vain. Without such a bound a
  /// bridge's receiver starves beside the sender.
  private let window: Int

  private init(
    _ namespace: NetworkNamespace, _ commands: [[String]], in folder: TemporaryFolder, ends: [String],
    window: Int
  ) throws {
    self.folder = folder
    self.window = window
    servers = try commands.map { words in
      try namespace.start(
        "taskset",
        ["-c", "0", try Environment.program("vhost-swiftd")] + words
          + ["--cpus", "0"])
    }
    sender = try Card(ends[0], number: 1)
    receiver = try Card(ends[1], number: 2)
    // The way has to learn who is where, and a bridge's port to be let through.
    let deadline = Deadline(seconds: 30)
    var known = 0
    while known < 3, !deadline.hasPassed {
      try receiver.send(to: sender.mac, bytes: 64)
      _ = poll(nil, 0, 20)
      try sender.send(to: receiver.mac, bytes: 64)
      _ = poll(nil, 0, 20)
      if receiver.take() > 0, sender.take() > 0 { known += 1 }
    }
    guard known == 3 else {
      throw HarnessError("no frame comes through", logs: servers.map { ($0.name, $0.log) })
    }
  }

  static func switched(_ namespace: NetworkNamespace) throws -> Way {
    let folder = try TemporaryFolder()
    let ends = [folder.file("a"), folder.file("b")]
    return try Way(
      namespace, [["switch", "--port", ends[0], "--port", ends[1]]], in: folder, ends: ends, window: 192)
  }

  static func bridged(_ namespace: NetworkNamespace) throws -> Way {
    let folder = try TemporaryFolder()
    let ends = [folder.file("a"), folder.file("b")]
    try namespace.shell(
      """
      echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
      ip link add bench type bridge; ip link set bench up
      for tap in end0 end1; do ip tuntap add dev $tap mode tap; ip link set $tap master bench up; done
      """)
    return try Way(
      namespace,
      (0..<2).map { ["net", "--socket-path", ends[$0], "--tap", "end\($0)"] }, in: folder, ends: ends,
      window: 768)
  }

  /// Sends as fast as frames come through; what came through each second, and what each cost the servers, in nanoseconds.
  func run(bytes: Int, milliseconds: Int) throws -> (rate: Double, cost: Double) {
    for server in servers { server.signal(SIGCONT) }
    defer { for server in servers { server.signal(SIGSTOP) } }
    sender.prepare(to: receiver.mac, bytes: bytes)
    let (length, warmup) = (UInt64(milliseconds) * 1_000_000, UInt64(milliseconds) * 250_000)
    _ = turns(nanoseconds: warmup)
    let before = processorTime
    let (frames, time) = turns(nanoseconds: length)
    let spent = processorTime - before
    guard frames > 0 else {
      throw HarnessError("no frame came through", logs: servers.map { ($0.name, $0.log) })
    }
    return (Double(frames) / Double(time) * 1e9, Double(spent) / Double(frames))
  }

  private func turns(nanoseconds: UInt64) -> (frames: Int, nanoseconds: UInt64) {
    let start = DispatchTime.now().uptimeNanoseconds
    var (sent, frames) = (0, 0)
    var lastProgress = start
    while true {
      var came = 0
      for _ in 0..<16 {
        sent += sender.fill(window - (sent - frames - came))
        came += receiver.take()
      }
      frames += came
      let now = DispatchTime.now().uptimeNanoseconds
      if came > 0 { lastProgress = now }
      // What has not come by now was lost on the way.
      if now - lastProgress > 20_000_000 { (sent, lastProgress) = (frames, now) }
      if now - start >= nanoseconds { return (frames, now - start) }
    }
  }

  /// Of all servers' threads, in nanoseconds. What the kernel does for them (a bridge, a tap) it does in their time.
  private var processorTime: UInt64 {
    servers.reduce(0) { sum, server in
      let folder = "/proc/\(server.pid)/task"
      let tasks = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
      return tasks.reduce(sum) { sum, task in
        let text = (try? String(contentsOfFile: "\(folder)/\(task)/schedstat", encoding: .utf8)) ?? ""
        return sum + (text.split(separator: " ").first.flatMap { UInt64($0) } ?? 0)
      }
    }
  }

  func stop() { for server in servers { server.kill() } }
}

/// One end: a card with all its buffers posted, that sends one frame again and again.
final class Card {
  let mac: [UInt8]
  private let driver: DeviceDriver
  private var buffers: [UInt64] = []
  private let room: UInt64
  private var frame: [DescriptorSpec] = []
  private static let headerBytes = 12
  private static let bufferBytes = 2048

  init(_ path: String, number: UInt8) throws {
    mac = [2, 0, 0, 0, 2, number]
    let options = DriverOptions.with {
      // Mergeable buffers, and nothing undone: the same work for both ways.
      $0.features = VirtioBits.driven | 1 << 15
      $0.queues = 2
      $0.queueSize = 256
      $0.timeout = .seconds(20)
    }
    driver = DeviceDriver(
      try .connect(to: path, waiting: .seconds(30), timeout: .seconds(30)),
      arena: try GuestArena(bytes: 4 << 20), options)
    try driver.connect()
    try driver.start()
    room = try driver.arena.allocate(Self.bufferBytes, alignment: 4096)
    buffers = [UInt64](repeating: 0, count: 65536)
    for _ in 0..<256 {
      let place = try driver.arena.allocate(Self.bufferBytes, alignment: 64)
      guard let token = driver.queues[0].ring.add([Self.buffer(place)]) else { break }
      buffers[Int(token)] = place
    }
    driver.queues[0].publish()
    for queue in driver.queues { queue.ring.disarm() }
  }

  private static func buffer(_ place: UInt64) -> DescriptorSpec {
    DescriptorSpec(place, UInt32(bufferBytes), write: true)
  }

  /// What `fill` sends.
  func prepare(to: [UInt8], bytes: Int) {
    let content = to + mac + [0x88, 0xb5] + [UInt8](repeating: 7, count: bytes - 14)
    try? driver.arena.write([UInt8](repeating: 0, count: Self.headerBytes) + content, at: room)
    frame = [DescriptorSpec(room, UInt32(Self.headerBytes + bytes))]
  }

  func send(to: [UInt8], bytes: Int) throws {
    prepare(to: to, bytes: bytes)
    _ = try driver.queues[1].submit(frame)
    _ = try driver.queues[1].wait()
  }

  /// Takes back what was sent, and sends up to so many; how many there was room for.
  func fill(_ most: Int) -> Int {
    let queue = driver.queues[1]
    while queue.ring.poll() != nil {}
    var count = 0
    while count < most, queue.ring.freeDescriptors > 0, queue.ring.add(frame) != nil { count += 1 }
    if count > 0 { queue.publish() }
    return count
  }

  /// Takes what came, and posts the buffers again; how many frames that were.
  func take() -> Int {
    let queue = driver.queues[0]
    var count = 0
    while let used = queue.ring.poll() {
      count += 1
      let place = buffers[Int(used.token)]
      if let token = queue.ring.add([Self.buffer(place)]) { buffers[Int(token)] = place }
    }
    if count > 0 { queue.publish() }
    return count
  }
}
