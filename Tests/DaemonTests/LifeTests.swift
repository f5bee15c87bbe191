// How the program begins and ends with a front-end, and without one.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Life of the program")
struct LifeTests {
  @Test("SIGTERM or SIGINT ends it with 0 and without its socket, idle", arguments: [SIGTERM, SIGINT])
  func idle(signal: Int32) throws {
    let daemon = try Daemon.disk(["--log-level", "trace"])
    daemon.process.signal(signal)
    #expect(try daemon.process.waitExit(within: 30) == .status(0), "\(daemon.log)")
    #expect(access(daemon.socket, F_OK) != 0)
  }

  @Test(
    "SIGTERM ends it with 0 with a front-end connected, whose connection is closed and whose writes are kept")
  func connected() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    let daemon = try Daemon.disk(image: image.path, in: folder)
    let driver = try daemon.connect()
    let data = BytePattern(seed: 1).bytes(at: 0, count: 16384)
    try driver.write(sector: 16, data)
    try daemon.stop()
    try driver.connection.expectClosed(timeout: .seconds(10))
    #expect(try image.read(sector: 16, count: data.count) == data)
    #expect(daemon.log == "", "nothing to say about any of that: \(daemon.log)")
  }

  @Test("SIGTERM ends it with 0 with half a message received, and with a front-end that asks and never reads")
  func stuckFrontends() throws {
    for stuck in [true, false] {
      let daemon = try Daemon.disk()
      let connection = try FrontendConnection.connect(to: daemon.socket)
      try connection.barrier()
      if stuck {
        // Until the answers fill the socket, and then the questions.
        connection.timeout = .milliseconds(300)
        let questions = [[UInt8]](repeating: FrontendConnection.encode(.getFeatures), count: 100).flatMap {
          $0
        }
        while (try? connection.sendRaw(questions)) != nil {}
      } else {
        try connection.sendRaw(Array(FrontendConnection.encode(.getFeatures).prefix(5)))
      }
      try daemon.stop()
    }
  }

  @Test(
    "SIGTERM as early and as often as it comes never leaves a socket or a status other than 0 or the signal's"
  )
  func early() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder, bytes: 64 << 10)
    for round in 0..<40 {
      let daemon = try Daemon(
        ["blk", "--socket-path", "{folder}/s", "--blk-file", image.path], in: folder, listens: false)
      // Another moment of its start each time: it takes about 10 ms.
      _ = poll(nil, 0, Int32(round / 2))
      daemon.process.signal(SIGTERM)
      let exit = try daemon.process.waitExit(within: 30)
      #expect(exit == .status(0) || exit == .signal(SIGTERM), "\(daemon.log)")
      #expect(access(daemon.socket, F_OK) != 0)
    }
  }

  @Test(
    "LC17 Front-ends that connect while it ends see their connection closed or refused, and never wait for it"
  )
  func race() throws {
    for round in 0..<10 {
      let daemon = try Daemon.disk()
      let socket = daemon.socket
      let finished = DispatchSemaphore(value: 0)
      let strange = Mutexed<[String]>([])
      for _ in 0..<3 {
        Thread {
          var isServed = true
          while isServed {
            do throws(FrontendError) {
              let connection = try FrontendConnection.connect(to: socket, timeout: .seconds(20))
              _ = try connection.getFeatures()
            } catch {
              isServed = false
              switch error {
              case .closed, .system(_, ENOENT), .system(_, ECONNREFUSED), .system(_, ECONNRESET),
                .system(_, EPIPE):
                break
              default: strange.change { $0.append("\(error)") }
              }
            }
          }
          finished.signal()
        }.start()
      }
      // Not before somebody was served.
      _ = try FrontendConnection.connect(to: socket, timeout: .seconds(20)).getFeatures()
      try daemon.stop()
      for _ in 0..<3 { #expect(finished.wait(timeout: .now() + 30) == .success, "round \(round)") }
      #expect(strange.value == [], "round \(round)")
    }
  }

  @Test("A front-end that waits while another is served has its turn once that one is gone")
  func backlog() throws {
    let daemon = try Daemon.disk()
    let first = try daemon.connect()
    let waiting = try FrontendConnection.connect(to: daemon.socket)
    try waiting.send(.getQueueNum)
    try first.write(sector: 0, [UInt8](repeating: 9, count: 512))
    #expect(throws: FrontendError.self, "one at a time") {
      _ = try waiting.receiveReply(to: .getQueueNum, timeout: .milliseconds(200))
    }
    #expect(try first.read(sector: 0, bytes: 512) == [UInt8](repeating: 9, count: 512))
    first.disconnect()
    #expect(try waiting.receiveReply(to: .getQueueNum, size: 8).payload[0] == 64)
    waiting.disconnect()
    try daemon.stop()
  }

  @Test("BK16 With 64 queues a ring beyond is refused, and the last one works")
  func lastQueue() throws {
    let daemon = try Daemon.disk()
    let driver = try daemon.connect {
      $0.driver.queues = 64
      $0.driver.queueSize = 16
      $0.dataBytes = 512
      $0.depth = 1
    }
    for ring in [64, 127] as [UInt32] {
      #expect(try driver.connection.setVringKick(ring, Doorbell()).isNack)
      #expect(try driver.connection.setVringNum(ring, 16).isNack)
      #expect(try driver.connection.setVringEnable(ring, true).isNack)
    }
    try driver.write(sector: 3, [UInt8](repeating: 3, count: 512), queue: 63)
    #expect(try driver.read(sector: 3, bytes: 512, queue: 0) == [UInt8](repeating: 3, count: 512))
    try daemon.stop()
  }

  @Test(
    "With --vhost-status the status is told back, and setting it to 0 forgets no ring's place",
    arguments: [false, true])
  func status(packed: Bool) throws {
    let daemon = try Daemon.disk(["--vhost-status"])
    let driver = try daemon.connect {
      $0.driver.packed = packed
      $0.driver.habit = .qemu72
    }
    #expect(driver.device.protocolFeatures & ProtocolBits.status != 0)
    #expect(try driver.connection.getStatus() == 0xf)
    for round in 0..<5 {
      let data = [UInt8](repeating: UInt8(round + 1), count: 512)
      try driver.write(sector: 9, data)
      // As QEMU 7.2 stops: status 0 first, then the rings are asked where they stand.
      let bases = try driver.stop()
      #expect(bases[0] & 0x7fff == UInt32(2 * round + 1) || packed)
      #expect(try driver.connection.getStatus() == 0)
      try driver.resume()
      #expect(try driver.read(sector: 9, bytes: 512) == data)
    }
    try daemon.stop()
  }

  @Test("LC11 Stopped and continued, it goes on where it was, with requests that came meanwhile")
  func stopAndContinue() throws {
    let daemon = try Daemon.disk()
    let driver = try daemon.connect()
    for round in 0..<5 {
      daemon.process.signal(SIGSTOP)
      try daemon.process.wait(until: "it is stopped", within: 30) {
        ProcessFacts(daemon.process).state == "T"
      }
      let data = [UInt8](repeating: UInt8(round + 1), count: 4096)
      let write = try driver.queues[0].submit(.write(sector: UInt64(8 * round), data))
      #expect(throws: FrontendError.self, "stopped") {
        _ = try driver.queues[0].wait(for: write, timeout: .milliseconds(100))
      }
      daemon.process.signal(SIGCONT)
      #expect(try driver.queues[0].wait(for: write).status == DiskRequest.ok)
      #expect(try driver.read(sector: UInt64(8 * round), bytes: 4096) == data)
    }
    try daemon.stop()
  }

  @Test("A disk that changes its size under a front-end without a back-end channel says so when it is asked")
  func resizeWithoutChannel() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder)
    let daemon = try Daemon.disk(["--watch-size"], image: image.path, in: folder)
    let driver = try daemon.connect {
      $0.driver.protocolFeatures = ProtocolBits.config | ProtocolBits.replyAck
    }
    #expect(driver.config.capacity == UInt64(image.bytes / 512))
    for bytes in [image.bytes * 2, image.bytes / 2, 0, image.bytes] {
      #expect(truncate(image.path, bytes) == 0)
      try daemon.process.wait(until: "the capacity of \(bytes) bytes", within: 30) {
        try driver.refreshConfig().capacity == UInt64(bytes / 512)
      }
    }
    #expect(try driver.perform(.read(sector: 0, bytes: 512)).status == DiskRequest.ok)
    // The same by a signal, without a watch.
    try daemon.stop()
    let other = try Daemon.disk(image: image.path, in: folder)
    let next = try other.connect { $0.driver.protocolFeatures = ProtocolBits.config | ProtocolBits.replyAck }
    #expect(truncate(image.path, image.bytes * 2) == 0)
    other.process.signal(SIGHUP)
    try other.process.wait(until: "the new capacity", within: 30) {
      try next.refreshConfig().capacity == UInt64(image.bytes * 2 / 512)
    }
    try other.stop()
  }

  @Test("--incoming starts on an image that another process still holds")
  func incoming() throws {
    let folder = try TemporaryFolder()
    let first = try Daemon.disk(in: folder)
    let driver = try first.connect()
    let second = try Daemon(
      [
        "blk", "--socket-path", "{folder}/t", "--blk-file", folder.file("disk.img"), "--incoming",
        "--lock-wait", "20",
      ], in: folder, listens: false)
    let connection = try FrontendConnection.connect(to: folder.file("t"), waiting: .seconds(20))
    try connection.barrier()
    try driver.write(sector: 0, [UInt8](repeating: 4, count: 512))
    driver.disconnect()
    connection.disconnect()
    let next = try BlockDriver(path: folder.file("t"), options())
    #expect(try next.read(sector: 0, bytes: 512) == [UInt8](repeating: 4, count: 512))
    next.disconnect()
    #expect(second.process.terminate() == .status(0))
    try first.stop()
  }
}

/// A value that several threads change.
final class Mutexed<Value>: @unchecked Sendable {
  private let lock = NSLock()
  private var inner: Value
  init(_ value: Value) { inner = value }
  var value: Value { lock.withLock { inner } }
  func change(_ body: (inout Value) -> Void) { lock.withLock { body(&inner) } }
}
