// A disk in a guest that is written and verified all the time, whatever is done to its back-end or its guest. Used on
// GuestThread.

import GuestHarness
import Testing

/// A disk under fio: written with checksums from both processors and read back, pass after pass, until `finish`. The load lives in
/// the guest and goes where it goes.
struct VerifiedDisk {
  /// Its name in the guest.
  let name: String
  private let slot: Int

  init(_ guest: Guest, slot: Int) throws {
    self.slot = slot
    name = try guest.check("basename /sys/bus/pci/devices/0000:00:0\(slot).0/virtio*/block/*")
    try guest.check(
      """
      cat >/tmp/passes-\(slot) <<'END'
      pass=0
      while [ ! -e /tmp/stop-\(slot) ]; do
        fio --name=v --filename=/dev/\(name) --rw=randwrite --bsrange=4k-16k --size=6m --offset_increment=8m \
          --numjobs=2 --cpus_allowed=0,1 --cpus_allowed_policy=split --direct=1 --ioengine=libaio --iodepth=32 \
          --randrepeat=0 --verify=crc32c --verify_fatal=1 --do_verify=1 >/tmp/fio-\(slot) 2>&1 || break
        pass=$((pass + 1))
      done
      [ -e /tmp/stop-\(slot) ] && echo $pass >/tmp/result-\(slot) || echo failed >/tmp/result-\(slot)
      END
      cd /tmp && sh /tmp/passes-\(slot) >/dev/null 2>&1 &
      """)
  }

  /// Waits until the disk has completed so many more writes.
  func waitWrites(_ count: Int, in guest: Guest) throws {
    try guest.check(
      """
      writes() { awk '{ print $5 }' /sys/block/\(name)/stat; }
      goal=$(($(writes) + \(count)))
      for i in $(seq 1200); do
        [ $(writes) -ge $goal ] && exit 0
        [ -e /tmp/result-\(slot) ] && break
        sleep 0.1
      done
      cat /tmp/fio-\(slot); exit 1
      """, within: 240)
  }

  /// Ends the passes after the one that runs; how many there were, all verified.
  func finish(in guest: Guest) throws -> Int {
    let result = try guest.check(
      """
      touch /tmp/stop-\(slot)
      timeout 200 sh -c 'until [ -s /tmp/result-\(slot) ]; do sleep 0.2; done'
      cat /tmp/result-\(slot); grep -q failed /tmp/result-\(slot) && cat /tmp/fio-\(slot); true
      """, within: 240)
    return try #require(Int(result), "\(result)")
  }
}
