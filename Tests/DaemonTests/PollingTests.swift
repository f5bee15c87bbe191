// How the program's threads wait, what it costs when there is nothing to do, and what it holds on to.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

@Suite("Waiting, idling, holding")
struct PollingTests {
  /// Many small requests on all queues, checked.
  private func load(_ driver: BlockDriver, rounds: Int = 300) throws {
    for round in 0..<rounds {
      let queue = round % driver.queues.count
      let data = [UInt8](repeating: UInt8(truncatingIfNeeded: round), count: 2048)
      try driver.write(sector: UInt64(round * 4 % 8192), data, queue: queue)
      #expect(try driver.read(sector: UInt64(round * 4 % 8192), bytes: 2048, queue: queue) == data)
    }
    try driver.flush()
  }

  @Test(
    "Each way of waiting serves requests, with and without kicks and calls",
    arguments: ["interrupt", "adaptive", "busy"], [false, true])
  func modes(mode: String, bare: Bool) throws {
    let daemon = try Daemon.disk(["--poll", mode])
    let driver = try daemon.connect {
      $0.driver.queues = 2
      $0.driver.withoutCall = bare
      $0.driver.withoutKick = bare
    }
    try load(driver)
    try daemon.stop()
  }

  @Test("A busy thread does not sleep while a queue runs, and does once none runs")
  func busy() throws {
    let daemon = try Daemon.disk(["--poll", "busy"])
    #expect(ProcessFacts(daemon.process).load(over: 300) < 0.05, "no queue runs yet")
    let driver = try daemon.connect()
    try load(driver, rounds: 10)
    let before = try daemon.counters()
    try load(driver, rounds: 10)
    let after = try daemon.counters()
    #expect(after.threads[0].sleeps == before.threads[0].sleeps)
    #expect(after.sum("kicks") == before.sum("kicks"), "a driver that is polled has nobody to kick")
    #expect(ProcessFacts(daemon.process).load(over: 300) > 0.1, "it polls")
    driver.disconnect()
    _ = try FrontendConnection.connect(to: daemon.socket).getFeatures()
    #expect(ProcessFacts(daemon.process).load(over: 300) < 0.05, "no queue runs any more")
    try daemon.stop()
  }

  @Test(
    "RS04: with a front-end connected that asks for nothing, next to no processor time is used, after load as before",
    arguments: ["interrupt", "adaptive"])
  func idle(mode: String) throws {
    let daemon = try Daemon.disk(["--poll", mode, "--threads", "2"])
    let facts = ProcessFacts(daemon.process)
    let driver = try daemon.connect { $0.driver.queues = 2 }
    let before = facts.load(over: 1000)
    try load(driver, rounds: 1000)
    let after = facts.load(over: 1000)
    #expect(before < 0.05 && after < 0.05, "\(before) and \(after) of a processor")
    // And it wakes up.
    try load(driver, rounds: 2)
    try daemon.stop()
  }

  @Test("RS04: a card with more buffers than a frame takes sleeps until there is a frame")
  func idleCard() throws {
    let daemon = try Daemon(["net", "--socket-path", "{folder}/s", "--backend", "loop"])
    let driver = try daemon.connectCard()
    let into = try driver.arena.allocate(2048)
    let out = try driver.arena.allocate(100)
    for _ in 0..<64 { _ = try driver.queues[0].submit([DescriptorSpec(into, 2048, write: true)]) }
    for _ in 0..<3 {
      let load = ProcessFacts(daemon.process).load(over: 500)
      #expect(load < 0.05, "\(load) of a processor")
      _ = try driver.queues[1].submit([DescriptorSpec(out, 72)])
      #expect(try driver.queues[0].wait().length == 72)
      #expect(try driver.queues[1].wait().length == 0)
    }
    driver.disconnect()
    try daemon.stop()
  }

  @Test(
    "RS04: a ring without a kick descriptor is looked at a thousand times a second at most while it is idle")
  func idleWithoutKick() throws {
    let daemon = try Daemon.disk()
    let driver = try daemon.connect { $0.driver.withoutKick = true }
    try load(driver, rounds: 50)
    let facts = ProcessFacts(daemon.process)
    // Naps of 50 µs grow to 1 ms: they are as long as they get before the window begins.
    let before = try daemon.counters().threads[0].sleeps
    let clock = ContinuousClock()
    var load = 0.0
    let window = clock.measure { load = facts.load(over: 2000) } / .seconds(1)
    let naps = Double(try daemon.counters().threads[0].sleeps - before)
    #expect(naps > 10 && naps < 1200 * window + 100, "\(naps) naps in \(window) s")
    #expect(load < 0.2, "\(load) of a processor")
    try self.load(driver, rounds: 5)
    try daemon.stop()
  }

  @Test("Queues are spread over the threads, which run on the processors asked for")
  func threads() throws {
    let daemon = try Daemon.disk([
      "--threads", "2", "--num-queues", "4", "--cpus", "0", "--poll", "interrupt",
    ])
    let facts = ProcessFacts(daemon.process)
    let driver = try daemon.connect { $0.driver.queues = 4 }
    for queue in 0..<4 { _ = try driver.read(sector: 0, bytes: 512, queue: queue) }
    for (queues, busy, quiet) in [([0, 2], "blk-0", "blk-1"), ([1, 3], "blk-1", "blk-0")] {
      let before = facts.threadTimes
      for round in 0..<2000 { _ = try driver.read(sector: 0, bytes: 512, queue: queues[round % 2]) }
      let after = facts.threadTimes
      let worked = (after[busy] ?? 0) - (before[busy] ?? 0)
      let idled = (after[quiet] ?? 0) - (before[quiet] ?? 0)
      #expect(worked > 0.001 && worked > 20 * idled, "\(busy) \(worked) s, \(quiet) \(idled) s")
    }
    for name in ["blk-0", "blk-1"] { #expect(facts.processors(ofThread: name) == "0") }
    try daemon.stop()
  }

  @Test("After front-ends have come and gone, descriptors, mappings and memory are what they were")
  func flat() throws {
    let daemon = try Daemon.disk(["--threads", "2"])
    let facts = ProcessFacts(daemon.process)
    let descriptors = facts.openDescriptors
    func visit() throws {
      let driver = try daemon.connect { $0.driver.queues = 2 }
      try load(driver, rounds: 10)
      driver.disconnect()
    }
    func settle() throws {
      try daemon.process.wait(until: "\(descriptors) descriptors again", within: 30) {
        facts.openDescriptors == descriptors
      }
    }
    for _ in 0..<5 { try visit() }
    try settle()
    let memory = facts.status("RssAnon") ?? 0
    for _ in 0..<100 { try visit() }
    try settle()
    #expect(abs((facts.status("RssAnon") ?? 0) - memory) < 1024, "kilobytes")
    #expect(facts.status("RssShmem") == 0, "no guest's memory is left")
    try daemon.stop()
  }

  @Test("RS09: nothing becomes executable after the start, and nothing is writable and executable")
  func executable() throws {
    let daemon = try Daemon.disk(["--watch-size"])
    let facts = ProcessFacts(daemon.process)
    let atStart = facts.executableMappings
    let driver = try daemon.connect { $0.driver.queues = 2 }
    try load(driver)
    #expect(try driver.perform(.read(sector: 1 << 50, bytes: 512)).status == DiskRequest.ioError)
    try driver.discard([DiskSegment(sector: 0, sectors: 8)])
    try driver.writeZeroes([DiskSegment(sector: 0, sectors: 8)])
    _ = try daemon.counters()
    let broken = try FrontendConnection.connect(to: daemon.socket)
    driver.disconnect()
    try broken.sendRaw(request: 1, flags: 3)
    try broken.expectClosed()
    #expect(facts.executableMappings.subtracting(atStart) == [])
    #expect(!atStart.isEmpty && !atStart.contains { $0.contains("rwx") })
    try daemon.stop()
  }

  @Test("One idle device takes less than 16 MiB, guest memory aside")
  func memory() throws {
    let folder = try TemporaryFolder()
    let image = try Image.make(in: folder).path
    let daemon = try Daemon.disk(image: image, in: folder)
    let facts = ProcessFacts(daemon.process)
    let driver = try daemon.connect()
    try load(driver)
    let own = facts.status("RssAnon") ?? 0
    // The image's pages are the page cache's, whoever maps them.
    let files = (facts.status("RssFile") ?? 0) - facts.resident(of: image)
    print("resident with one idle device: \(own) KiB of its own, \(files) KiB of program and libraries")
    #expect(own > 0 && own < 4 << 10, "\(own) KiB of its own")
    // Most of it is the Swift runtime's libraries, shared with every other process that uses them.
    #expect(own + files < 16 << 10, "\(own) KiB of its own, \(files) KiB of program and libraries")
    try daemon.stop()
  }
}
