// What a quiet queue's requests wait while a neighbour floods: on one thread (two queues of a disk), and on one processor (two
// disks of one `vhost-swiftd serve`). Median and 99th percentile of 4 KiB reads, one in 50 µs, beside the flood and alone, in turn. One client
// drives both queues and polls. Storage is a memory file system's: what is seen is the server's doing.

import Foundation
import GuestHarness
import VhostFrontend

enum NeighbourPairs {
  static func measure(_ pace: Pace) throws -> [Finding] {
    let server = try Server()
    defer { server.stop() }
    let first = try BlockDriver(path: server.socket(0), waiting: .seconds(30), disk)
    let second = try BlockDriver(path: server.socket(1), waiting: .seconds(30), disk)
    defer { for driver in [first, second] { driver.disconnect() } }
    var findings: [Finding] = []
    for bytes in [4096, 131_072] {
      for (place, quiet) in [("thread", first.queues[1]), ("processor", second.queues[0])] {
        let flood = Flood(queue: first.queues[0], bytes: bytes)
        let name = "quiet queue, \(bytes >> 10) KiB reads flood the same \(place)"
        // The middle tells what a turn beside the flood costs; the 99th, on a busy machine, what others on it cost.
        var middle = Finding(name, "latency, median", "ns", higherIsBetter: false)
        var late = Finding(name, "latency, 99 %", "ns", higherIsBetter: false)
        for _ in 0..<pace.rounds {
          let beside = try times(of: quiet, beside: flood, pace.milliseconds)
          try flood.end()
          let alone = try times(of: quiet, beside: nil, pace.milliseconds)
          middle.ours.append(beside.middle)
          middle.peer.append(alone.middle)
          late.ours.append(beside.late)
          late.peer.append(alone.late)
        }
        findings += [middle, late]
      }
    }
    return findings
  }

  static let depth = 64
  private static let disk = DiskOptions.with {
    $0.driver.queues = 2
    $0.driver.queueSize = 256
    $0.driver.timeout = .seconds(30)
    $0.depth = depth
    $0.dataBytes = 128 << 10
  }

  /// A quiet guest's pace: a read falls due so often. What has to wait counts from when it was due, not from when the one before it
  /// was answered: a pause of the server's is seen by all that it held up.
  private static let interval: UInt64 = 50_000

  /// Reads one block after another for so long; what half of the reads and what 99 of 100 did not exceed, in nanoseconds.
  private static func times(
    of quiet: BlockQueue, beside flood: Flood?, _ milliseconds: Int
  ) throws -> (middle: Double, late: Double) {
    let begin = DispatchTime.now().uptimeNanoseconds
    let length = UInt64(milliseconds) * 1_000_000
    var times: [UInt64] = []
    times.reserveCapacity(1 << 16)
    var due = begin
    var isUnderWay = false
    while true {
      flood?.turn()
      let now = DispatchTime.now().uptimeNanoseconds
      if isUnderWay, let done = quiet.poll() {
        guard done.status == DiskRequest.ok else { throw HarnessError("a read failed") }
        times.append(now - due)
        due += interval
        isUnderWay = false
      }
      if !isUnderWay {
        if now - begin >= length { break }
        guard now >= due else { continue }
        _ = quiet.submit(
          type: DiskRequest.Kind.read, sector: UInt64(times.count % 1024) * 8, bytes: 4096, deviceWrites: true
        )
        quiet.publish()
        isUnderWay = true
      }
      if now - begin > length + 10_000_000_000 { throw HarnessError("the quiet queue gets no answer") }
    }
    times.sort()
    return (Double(times[times.count / 2]), Double(times[times.count * 99 / 100]))
  }
}

/// Keeps a queue full of reads.
struct Flood {
  let queue: BlockQueue
  let bytes: Int

  func turn() {
    while queue.poll() != nil {}
    var any = false
    while queue.queue.ring.inFlight < NeighbourPairs.depth {
      guard
        queue.submit(type: DiskRequest.Kind.read, sector: 0, bytes: bytes, deviceWrites: true) != nil
      else { break }
      any = true
    }
    if any { queue.publish() }
  }

  /// Takes back what is in flight.
  func end() throws {
    let deadline = Deadline(seconds: 30)
    while queue.queue.ring.inFlight > 0 {
      if queue.poll() == nil, deadline.hasPassed { throw HarnessError("the flood gets no answer") }
    }
  }
}

/// Two disks of one process, a thread each, on one processor.
final class Server {
  private let folder: TemporaryFolder
  private let process: ChildProcess
  private let images: [String]

  init() throws {
    folder = try TemporaryFolder()
    let folder = folder
    let images = (0..<2).map { "/dev/shm/neighbour-bench.\(getpid()).\($0)" }
    self.images = images
    for image in images { try Data(repeating: 7, count: 16 << 20).write(to: URL(fileURLWithPath: image)) }
    let devices = (0..<2).map { number in
      #"{"device": "blk", "socket-path": "\#(folder.file("\(number)"))", "blk-file": "\#(images[number])", "#
        + #""num-queues": 2, "cpus": "0"}"#
    }
    let config = folder.file("config.json")
    try "{\"devices\": [\(devices.joined(separator: ", "))]}".write(
      toFile: config, atomically: true, encoding: .utf8)
    process = try ChildProcess(
      try Environment.program("vhost-swiftd"), ["serve", "--config", config], log: folder.file("log"))
  }

  func socket(_ number: Int) -> String { folder.file("\(number)") }

  func stop() {
    process.kill()
    for image in images { unlink(image) }
  }
}
