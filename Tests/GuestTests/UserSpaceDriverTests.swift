// DPDK's driver of network cards, in user space and without hugepages: split rings, packed ones, and its vectorised path over
// packed ones, against each end that `net --backend` has. Below the guests, since it takes a processor for itself.

import Foundation
import GuestHarness
import Testing

extension InAGuest {
  @Suite("A driver in user space", .enabled(if: !BackendProcess.standIn))
  @GuestThread
  struct UserSpaceDriver {
    /// How the driver is asked to use its rings, and the feature bits by which it is seen that it does.
    enum Rings: String, CaseIterable, Sendable {
      case split, packed, vectorised

      var options: String {
        switch self {
        case .split: "packed_vq=0,mrg_rxbuf=1,in_order=0"
        case .packed: "packed_vq=1,mrg_rxbuf=1,in_order=0"
        case .vectorised: "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1"
        }
      }

      /// VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER, VIRTIO_NET_F_MRG_RXBUF.
      func expects(_ bit: Int) -> Bool? {
        switch (self, bit) {
        case (.split, 34): false
        case (_, 34): true
        case (.vectorised, 35): true
        case (_, 35): false
        case (_, 15): self != .vectorised
        default: nil
        }
      }
    }

    @Test(
      "testpmd sends, receives, and gets back what it sent; both sides count the same",
      arguments: Rings.allCases)
    func traffic(rings: Rings) throws {
      let ends = try ["sink", "source", "loop"].map { try ServedEnd($0) }
      let driver = try Testpmd(sockets: ends.map(\.socket), rings.options)
      for end in ends {
        let features = try end.chosenFeatures()
        for bit in [34, 35, 15] {
          #expect(features.contains(bit) == rings.expects(bit), "bit \(bit) of \(features), \(end.name)")
        }
      }
      if rings == .vectorised, Testpmd.mayVectorise {
        #expect(driver.log.contains("using packed ring vectorized Rx path on port 0"), "\(driver.log)")
        #expect(driver.log.contains("using packed ring vectorized Tx path on port 0"), "\(driver.log)")
      }
      try sends(driver, ends[0])
      try receives(driver, ends[1])
      try echoes(driver, ends[2])
      for end in ends {
        for name in ["malformed", "badHeader", "refused", "oversize", "runts", "faults", "noRoom"] {
          #expect(try end.process.counter(name) == 0, "\(name) of \(end.name)")
        }
      }
      try driver.quit()
      for end in ends { #expect(end.process.terminate() == .status(0), "\(end.process.log)") }
    }

    private static let enough = 10_000

    private func sends(_ driver: Testpmd, _ end: ServedEnd) throws {
      try driver.command("set portlist 0", "set fwd txonly", "start")
      try end.wait(forFrames: Self.enough, queue: 1)
      try driver.command("stop")
      let sent = try driver.packets("TX-packets", port: 0)
      #expect(sent >= Self.enough)
      // What the driver put into its ring is taken, every frame of it.
      try end.wait(forFrames: sent, queue: 1)
      #expect(try end.process.counter("frames", queue: 1) == sent)
      #expect(try end.process.counter("bytes", queue: 1) == 64 * sent)
    }

    private func receives(_ driver: Testpmd, _ end: ServedEnd) throws {
      try driver.command("set portlist 1", "set fwd rxonly", "start")
      try end.wait(forFrames: Self.enough, queue: 0)
      try driver.command("stop")
      let received = try driver.packets("RX-packets", port: 1)
      let given = try end.process.counter("frames", queue: 0)
      // Nobody looks any more: what was given since fills the ring, at most.
      #expect(received > 0 && given >= received && given - received <= Testpmd.ringSize)
    }

    private func echoes(_ driver: Testpmd, _ end: ServedEnd) throws {
      try driver.command("set portlist 2", "set fwd mac", "start tx_first 4")
      try end.wait(forFrames: Self.enough, queue: 0)
      try driver.command("stop")
      let sent = try driver.packets("TX-packets", port: 2)
      let received = try driver.packets("RX-packets", port: 2)
      try end.wait(forFrames: sent, queue: 0)
      #expect(try end.process.counter("frames", queue: 1) == sent)
      #expect(try end.process.counter("frames", queue: 0) == sent)
      // 4 bursts of 32 are always on the way.
      #expect(received >= sent - 128 && received <= sent)
    }
  }
}

/// `net --backend`, and its own view of things.
@GuestThread
private final class ServedEnd {
  let name: String
  let process: ChildProcess
  private let folder: TemporaryFolder
  var socket: String { folder.file("s") }

  init(_ name: String) throws {
    self.name = name
    folder = try TemporaryFolder()
    process = try ChildProcess(
      Environment.program("vhost-swiftd"),
      ["net", "--socket-path", folder.file("s"), "--backend", name, "--log-level", "debug"],
      log: folder.file("log"))
    let socket = folder.file("s")
    try process.wait(until: "its socket is there", within: 60) {
      FileManager.default.fileExists(atPath: socket)
    }
  }

  /// The bits that its log names last.
  func chosenFeatures() throws -> Set<Int> {
    let words = "the driver chose features {"
    let line = try #require(process.log.split(separator: "\n").last { $0.contains(words) }, "\(process.log)")
    let range = try #require(line.range(of: words))
    return Set(line[range.upperBound...].prefix { $0 != "}" }.split(separator: ",").compactMap { Int($0) })
  }

  func wait(forFrames count: Int, queue: Int) throws {
    try process.wait(until: "\(count) frames on queue \(queue)", within: 60) {
      try process.counter("frames", queue: queue) >= count
    }
  }
}

/// DPDK's testpmd with one port for each socket, at its prompt.
@GuestThread
private final class Testpmd {
  static let ringSize = 1024
  private let folder: TemporaryFolder
  private let process: ChildProcess
  private let input: FileHandle
  private var asked = 0
  var log: String { process.log }

  /// Its vectorised packed path needs AVX-512.
  static let mayVectorise = ["avx512f", "avx512bw", "avx512vl"].allSatisfy {
    ((try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? "").contains(" \($0) ")
  }

  init(sockets: [String], _ options: String) throws {
    folder = try TemporaryFolder()
    let ports = sockets.enumerated().flatMap { index, path in
      ["--vdev", "net_virtio_user\(index),path=\(path),mac=02:00:00:00:00:0\(index + 1),queues=1,\(options)"]
    }
    // Its commands come by a pipe that has a name. What it writes is read while it runs: by the line.
    let script = #"umask 077; mkfifo "$1"; exec <>"$1"; shift; exec stdbuf -oL dpdk-testpmd "$@""#
    let arguments =
      [
        "--lcores", "0@0,1@0", "--no-pci", "--no-huge", "-m", "400", "--no-telemetry", "--no-shconf",
        "--force-max-simd-bitwidth=512", "--log-level", "pmd.net.virtio.init:info",
      ] + ports
      + [
        "--", "-i", "--nb-cores=1", "--txd=\(Self.ringSize)", "--rxd=\(Self.ringSize)",
        "--total-num-mbufs=16384",
      ]
    let process = try ChildProcess(
      "sh", ["-ec", script, "sh", folder.file("commands")] + arguments, log: folder.file("log"),
      environment: ["RUNTIME_DIRECTORY": folder.path])
    try process.wait(until: "its prompt", within: 60) { process.log.contains("testpmd> ") }
    self.process = process
    input = try FileHandle(forWritingTo: URL(fileURLWithPath: folder.file("commands")))
  }

  /// Gives it commands, and waits until they are done.
  func command(_ lines: String...) throws {
    for line in lines { try input.write(contentsOf: Data((line + "\n").utf8)) }
    // There is no such command: its answer comes when those before it are done.
    try input.write(contentsOf: Data("done\n".utf8))
    asked += 1
    try process.wait(until: "\(lines) is done", within: 60) {
      process.log.split(whereSeparator: \.isNewline).count { $0 == "Command not found" } == asked
    }
  }

  /// A port's counter since the start.
  func packets(_ name: String, port: Int) throws -> Int {
    try command("show port stats \(port)")
    let words = process.log.split(whereSeparator: \.isWhitespace)
    let place = try #require(words.lastIndex { $0 == "\(name):" })
    return try #require(words.indices.contains(place + 1) ? Int(words[place + 1]) : nil)
  }

  func quit() throws {
    try input.write(contentsOf: Data("quit\n".utf8))
    let exit = try process.waitExit(within: 60)
    #expect(exit == .status(0), "\(process.log)")
  }
}
