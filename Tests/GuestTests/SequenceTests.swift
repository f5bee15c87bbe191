// What QEMU really sends, recorded between it and the program, and that the driver side of this project (Habit.qemu72)
// sends just that: so every test that drives a back-end in QEMU's manner does what QEMU does.

import Foundation
import GuestHarness
import Testing
import VhostFrontend

extension InAGuest {
  @Suite("What QEMU sends")
  @GuestThread
  struct Messages {
    /// As QEMU 7.2 sends it, with two queues: from the connection to the last ENABLE of a guest's start.
    private static let connection = [
      "GET_FEATURES", "GET_PROTOCOL_FEATURES", "SET_PROTOCOL_FEATURES", "GET_QUEUE_NUM", "GET_MAX_MEM_SLOTS",
      "SET_BACKEND_REQ_FD", "SET_OWNER", "GET_FEATURES", "SET_VRING_CALL", "SET_VRING_ERR", "SET_VRING_CALL",
      "SET_VRING_ERR", "GET_CONFIG 57",
    ]
    private static let ring = ["SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_KICK"]
    private static func start(first: Bool) -> [String] {
      ["SET_FEATURES"] + (first ? ["GET_INFLIGHT_FD"] : []) + ["SET_INFLIGHT_FD"]
        + ["SET_VRING_CALL", "SET_VRING_CALL", "SET_FEATURES"] + (first ? ["ADD_MEM_REG"] : [])
        + ring + ring + ["SET_VRING_ENABLE 1", "SET_VRING_ENABLE 1"]
    }
    private static let stop = [
      "SET_VRING_ENABLE 0", "SET_VRING_ENABLE 0", "GET_VRING_BASE", "GET_VRING_BASE",
    ]

    @Test(
      "QEMU's messages to a disk, from the connection over stop and cont to the end, are those of our QEMU habit"
    )
    func disk() throws {
      guard !BackendProcess.standIn else { return }
      let image = try DiskImage(mebibytes: 16)
      let backend = try BackendProcess.disk(image.path, queues: 2)
      let relay = try Relay(to: backend.socketPath)
      var configuration = GuestConfiguration()
      configuration.arguments = [
        "-chardev", "socket,id=c,path=\(relay.socket)",
        "-device", "vhost-user-blk-pci,chardev=c,num-queues=2,addr=0x4",
      ]
      let guest = try Guest.boot(configuration)
      let use = "dd if=/dev/vda of=/dev/null bs=4k count=10 iflag=direct"
      try guest.check(use)
      #expect(relay.take() == Self.connection + Self.start(first: true))
      try guest.monitor.execute("stop")
      #expect(relay.take() == Self.stop)
      try guest.monitor.execute("cont")
      try guest.check(use)
      #expect(relay.take() == Self.start(first: false))
      try guest.powerOff()
      #expect(relay.take() == Self.stop)
      try playedByUs(relay)
      try backend.stop()
    }

    /// The same played by the driver side of this project.
    private func playedByUs(_ relay: Relay) throws {
      let driver = try BlockDriver(
        path: relay.socket,
        .with {
          $0.driver.habit = .qemu72
          $0.driver.queues = 2
          $0.driver.timeout = .seconds(60)
        })
      /// What was sent, once it has passed: the relay has noted a question before its answer comes.
      func sent() throws -> [String] {
        try driver.connection.barrier()
        return relay.take().dropLast()
      }
      _ = try driver.read(sector: 0, bytes: 512)
      #expect(try sent() == Self.connection + Self.start(first: true))
      try driver.stop()
      #expect(try sent() == Self.stop)
      try driver.resume()
      #expect(try sent() == Self.start(first: false))
      driver.disconnect()
    }
  }
}
