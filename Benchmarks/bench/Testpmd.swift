// dpdk-testpmd: a driver of network cards in user space, and a back-end for them. Takes commands by its standard input, answers
// into a file. The main thread.

import Foundation
import GuestHarness

/// One dpdk-testpmd that runs until this object goes. Starts without hugepages and without real cards.
final class Testpmd {
  static let packages = "dpdk-dev librte-net-virtio23 librte-net-vhost23 librte-mempool-ring23"
  /// Packets that go round: 32 bursts of 32.
  private static let bursts = 32

  let process: ChildProcess
  private let commands: Pipe
  private let folder: TemporaryFolder

  /// Starts it on one processor with one virtual device; returns when it takes commands, which takes some seconds.
  init(device: String, processor: String) throws {
    folder = try TemporaryFolder()
    commands = Pipe()
    let reader = commands.fileHandleForReading
    // Its output would come in blocks, to a file; its commands come by descriptor 3.
    let line =
      "exec stdbuf -oL dpdk-testpmd --lcores '0@\(processor),1@\(processor)' --no-pci --no-huge -m 300 --no-telemetry"
      + " --file-prefix bench\(getpid())x\(UInt16.random(in: 0 ... .max)) --vdev '\(device)'"
      + " -- -i --nb-cores=1 --txd=1024 --rxd=1024 --total-num-mbufs=16384 <&3"
    process = try ChildProcess(
      "sh", ["-c", line], log: folder.file("log"), descriptors: [reader.fileDescriptor])
    try process.wait(until: "it takes commands", within: 60) { process.log.contains("testpmd>") }
    try say("set fwd mac")
  }

  /// A card that is served at a socket (virtio-user).
  static func card(at socket: String, packed: Bool, processor: String) throws -> Testpmd {
    try Testpmd(
      device: "net_virtio_user0,path=\(socket),mac=00:01:02:03:04:05,queues=1,packed_vq=\(packed ? 1 : 0),"
        + "mrg_rxbuf=1,in_order=0", processor: processor)
  }

  /// DPDK's own back-end, which gives every packet back.
  static func backend(at socket: String, processor: String) throws -> Testpmd {
    let server = try Testpmd(device: "net_vhost0,iface=\(socket),queues=1,client=0", processor: processor)
    try server.say("start")
    return server
  }

  private func say(_ command: String) throws {
    try commands.fileHandleForWriting.write(contentsOf: Data("\(command)\n".utf8))
  }

  /// Lets packets of a size go round; those of before are taken out first.
  func send(bytes: Int, isFirst: Bool) throws {
    if !isFirst {
      let ends = count("Done.")
      try say("stop")
      try process.wait(until: "it has stopped", within: 60) { count("Done.") > ends }
    }
    try say("set txpkts \(bytes)")
    try say("start tx_first \(Self.bursts)")
  }

  /// Packets a second that come back, over a time.
  func rate(seconds: Double) throws -> Double {
    _ = try statistics()
    usleep(UInt32(seconds * 1e6))
    return try statistics()
  }

  /// Packets a second since it was asked the last time.
  private func statistics() throws -> Double {
    let answers = count("Tx-pps:")
    try say("show port stats all")
    try process.wait(until: "it tells its figures", within: 60) { count("Tx-pps:") > answers }
    let line = process.log.split(separator: "\n").last { $0.contains("Rx-pps:") } ?? ""
    let words = line.split(separator: " ")
    return words.count > 1 ? Double(words[1]) ?? 0 : 0
  }

  private func count(_ text: String) -> Int { process.log.components(separatedBy: text).count - 1 }

  func stop() { process.terminate() }
}
