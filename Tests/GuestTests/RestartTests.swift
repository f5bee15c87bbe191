// A guest whose disk's process ends under its hands, again and again: it notices nothing but a pause.

import Foundation
import GuestHarness
import Testing

extension InAGuest {
  @Suite("A disk whose process dies", .enduring)
  @GuestThread
  struct Restart {
    @Test(
      "LC16 fio verifies what it wrote while the process was killed, and told to end, in turn, under it",
      arguments: [false, true])
    func restarts(packed: Bool) throws {
      guard !BackendProcess.standIn else { return }
      let image = try DiskImage(mebibytes: 64)
      let backend = try BackendProcess.disk(image.path, queues: 2)
      var configuration = GuestConfiguration()
      configuration.attachDisk(
        backend, slot: 4, queues: 2, reconnects: true, options: ["packed=\(packed ? "on" : "off")"])
      let guest = try Guest.boot(configuration)
      let disk = try VerifiedDisk(guest, slot: 4)
      for round in 0..<Environment.rounds(4) {
        // The moment of the end is the guest's: so many more writes are done, and others are under way.
        try disk.waitWrites(Int.random(in: 20..<300), in: guest)
        try backend.replace(killing: round % 2 == 0)
      }
      try disk.waitWrites(100, in: guest)
      #expect(try disk.finish(in: guest) > 0)
      #expect(!guest.kernelLog.contains("I/O error"), "\(guest.kernelLog)")
      try guest.powerOff()
      try backend.stop()
    }
  }
}
