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
      let backend = try RestartedDisk(image.path)
      var configuration = GuestConfiguration()
      configuration.arguments = [
        "-chardev", "socket,id=c,path=\(backend.socket),reconnect=1",
        "-device",
        "vhost-user-blk-pci,chardev=c,id=disk,num-queues=2,addr=0x4,packed=\(packed ? "on" : "off")",
      ]
      let guest = try Guest.boot(configuration)
      let disk = try guest.check("basename /sys/bus/pci/devices/0000:00:04.0/virtio*/block/*")
      try startVerifying(guest, disk)
      for round in 0..<Environment.rounds(4) {
        // The moment of the end is the guest's: so many more writes are done, and others are under way.
        try waitWrites(guest, disk, Int.random(in: 20..<300))
        try backend.end(killing: round % 2 == 0)
        try backend.rise()
      }
      try waitWrites(guest, disk, 100)
      let passes = try stopVerifying(guest)
      #expect(passes > 0)
      #expect(!guest.kernelLog.contains("I/O error"), "\(guest.kernelLog)")
      try guest.powerOff()
      #expect(backend.process.terminate() == .status(0))
    }

    /// Writes with checksums from both processors and reads all of it back, pass after pass, until it is told to stop.
    private func startVerifying(_ guest: Guest, _ disk: String) throws {
      try guest.check(
        """
        cat >/tmp/passes <<'END'
        pass=0
        while [ ! -e /tmp/stop ]; do
          fio --name=v --filename=/dev/\(disk) --rw=randwrite --bsrange=4k-16k --size=6m --offset_increment=8m \
            --numjobs=2 --cpus_allowed=0,1 --cpus_allowed_policy=split --direct=1 --ioengine=libaio --iodepth=32 \
            --randrepeat=0 --verify=crc32c --verify_fatal=1 --do_verify=1 >/tmp/fio 2>&1 || break
          pass=$((pass + 1))
        done
        [ -e /tmp/stop ] && echo $pass >/tmp/result || echo failed >/tmp/result
        END
        sh /tmp/passes >/dev/null 2>&1 &
        """)
    }

    /// Ends the passes after the one that runs; how many there were, all verified.
    private func stopVerifying(_ guest: Guest) throws -> Int {
      let result = try guest.check(
        """
        touch /tmp/stop
        timeout 200 sh -c 'until [ -s /tmp/result ]; do sleep 0.2; done'
        cat /tmp/result; grep -q failed /tmp/result && cat /tmp/fio; true
        """, within: 240)
      return try #require(Int(result), "\(result)")
    }

    /// Waits until the disk has completed so many more writes.
    private func waitWrites(_ guest: Guest, _ disk: String, _ count: Int) throws {
      try guest.check(
        """
        writes() { awk '{ print $5 }' /sys/block/\(disk)/stat; }
        goal=$(($(writes) + \(count)))
        for i in $(seq 1200); do
          [ $(writes) -ge $goal ] && exit 0
          [ -e /tmp/result ] && break
          sleep 0.1
        done
        cat /tmp/fio; exit 1
        """, within: 240)
    }
  }
}

/// The back-end of one socket, started again whenever it has ended.
private final class RestartedDisk {
  private let arguments: [String]
  private let folder: TemporaryFolder
  let socket: String
  private(set) var process: ChildProcess

  init(_ image: String) throws {
    folder = try TemporaryFolder()
    socket = folder.file("socket")
    arguments = ["blk", "--socket-path", socket, "--blk-file", image, "--num-queues", "2"]
    process = try Self.start(arguments, folder)
    let path = socket
    try process.wait(until: "its socket is there", within: 60) {
      FileManager.default.fileExists(atPath: path)
    }
  }

  private static func start(_ arguments: [String], _ folder: TemporaryFolder) throws -> ChildProcess {
    try ChildProcess(Environment.program("vhost-swiftd"), arguments, log: folder.file("backend.log"))
  }

  /// As a crash ends it, or as an administrator does.
  func end(killing: Bool) throws {
    if killing {
      #expect(process.kill() == .signal(SIGKILL))
    } else {
      #expect(process.terminate(within: 60) == .status(0), "\(process.log)")
    }
  }

  func rise() throws { process = try Self.start(arguments, folder) }
}
