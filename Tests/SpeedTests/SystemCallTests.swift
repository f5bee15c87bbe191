// How often the program goes to the kernel for a batch of requests: counted by strace while a driver sends batches one after
// another, so that no batch depends on how fast the machine is.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("System calls")
struct SystemCallTests {
  private static let depth = 32
  private static let batches = 200

  @Test("A batch on a null disk needs no system call while the program polls")
  func null() throws {
    let count = try count(["--null-size", "64M"])
    #expect(count <= 0.02, "\(count) system calls a request")
  }

  @Test("A batch of reads from the page cache goes to the kernel a few times, not once a request")
  func cached() throws {
    let folder = try TemporaryFolder()
    let image = folder.file("image")
    try Data(repeating: 0x5a, count: 8 << 20).write(to: URL(fileURLWithPath: image))
    let count = try count(["--blk-file", image])
    #expect(count <= 0.15, "\(count) system calls a request")
  }

  /// System calls of the whole process for each of many requests, in batches of `depth`.
  private func count(_ storage: [String]) throws -> Double {
    let server = try BackendProcess.vhostSwiftd(
      ["blk", "--socket-path", "{socket}", "--poll", "busy"] + storage)
    let disk = try BlockDriver(
      path: server.socketPath,
      .with {
        $0.depth = Self.depth
        $0.dataBytes = 4096
        $0.driver.features &= ~VirtioBits.indirect
      })
    let queue = disk.queues[0]
    queue.queue.ring.disarm()
    try send(queue, 20)

    let folder = try TemporaryFolder()
    let counts = folder.file("counts")
    let tracer = try ChildProcess(
      "strace", ["-f", "-c", "-o", counts, "-p", "\(server.process.pid)"], log: folder.file("log"))
    try tracer.wait(until: "it is attached", within: 60) { tracer.log.contains("attached") }
    try send(queue, Self.batches)
    tracer.signal(SIGINT)
    try tracer.waitExit(within: 60)
    _ = try disk.stop()
    disk.disconnect()
    try server.stop()

    let table = String(decoding: FileManager.default.contents(atPath: counts) ?? Data(), as: UTF8.self)
    // Nothing at all was called: strace then prints no table.
    guard let total = table.split(separator: "\n").last(where: { $0.hasSuffix("total") }) else { return 0 }
    let words = total.split(separator: " ")
    let calls = try #require(words.count > 3 ? Double(words[3]) : nil)
    return calls / Double(Self.batches * Self.depth)
  }

  private func send(_ queue: BlockQueue, _ batches: Int) throws {
    for batch in 0..<batches {
      for place in 0..<Self.depth {
        let sector = UInt64((batch * 31 + place * 7) % 2000 * 8)
        _ = try #require(
          queue.submit(type: DiskRequest.Kind.read, sector: sector, bytes: 4096, deviceWrites: true))
      }
      queue.publish()
      let deadline = ContinuousClock.now + .seconds(60)
      var back = 0
      while back < Self.depth {
        guard let done = queue.poll() else {
          try #require(ContinuousClock.now < deadline, "no request came back")
          continue
        }
        #expect(done.status == DiskRequest.ok)
        back += 1
      }
    }
  }
}
