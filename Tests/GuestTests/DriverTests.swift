// Drivers that go away in the middle of their requests, and come back.

import GuestHarness
import Testing

extension InAGuest {
  @Suite("A disk whose driver goes and comes", .machine)
  @GuestThread
  struct Driver {
    @Test("LC03 The driver is unbound and bound under load, again and again, and the disk works in the end")
    func unbind() throws {
      let machine = try Machine.current()
      for _ in 0..<Environment.rounds(12) { try machine.rebindDiskUnderLoad() }
      try machine.startLoad()
      try machine.unbindDisk()
      // Its requests now fail, so the load ends, and lets go of the old device.
      try machine.guest.check(
        "timeout 60 sh -c 'while pidof fio; do sleep 0.1; done' >/dev/null", within: 120)
      try machine.bindDisk()
      try machine.verify()
    }

    @Test("The machine is reset under load, twice, and the disk works after it boots again")
    func reset() throws {
      let machine = try Machine.current()
      for _ in 0..<2 {
        try machine.startLoad()
        try machine.guest.reset()
        try machine.verify()
      }
    }

    @Test(
      "QEMU is killed under load, and another guest works on the same back-end with what the first had written"
    )
    func killedFrontEnd() throws {
      let machine = try Machine.current()
      let lowerHalf = "head -c 33554432 \(try machine.disk()) | sha256sum"
      let before = try machine.guest.check(
        "blockdev --flushbufs \(machine.disk()); " + lowerHalf, within: 240)
      try machine.startLoad()
      try machine.replaceGuest()
      #expect(try machine.guest.check(lowerHalf, within: 240) == before)
      try machine.verify()
    }
  }
}
