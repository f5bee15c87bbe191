// A disk at its limits: requests wait their turn, none is lost, and nobody waits for the bucket who need not.

import BlockBackend
import DeviceKit
import Foundation
import HostIO
import Testing

@Suite("disk limits")
struct LimitTests {
  private func counter(_ disk: Disk, _ name: String) -> UInt64 {
    disk.host.counters[0].snapshot.first { $0.name == name }?.value ?? 0
  }

  /// Makes `count` reads of 512 bytes available, of sectors 0, 1, 2 …, with their headers and data in places of their own.
  private func submit(_ count: Int, _ disk: Disk) {
    for i in 0..<count {
      let place = disk.data + 4096 * (i + 1)
      disk.queue.pointer(place).storeBytes(of: 0, as: UInt64.self)
      disk.queue.pointer(place).storeBytes(of: UInt64(i), toByteOffset: 8, as: UInt64.self)
      disk.queue.pointer(place + 1024).storeBytes(of: 0xee, as: UInt8.self)
      disk.queue.add([(place, 16, false), (place + 512, 512, true), (place + 1024, 1, true)])
    }
    disk.queue.sendKick()
  }

  private func expectServed(_ count: Int, _ disk: Disk) {
    for i in 0..<count {
      let place = disk.data + 4096 * (i + 1)
      #expect(disk.bytes(place + 1024, 1) == [0])
      #expect(disk.bytes(place + 512, 2) == [UInt8(i), UInt8(i)])
    }
  }

  private static func place() -> String {
    FileManager.default.fileExists(atPath: "/dev/shm") ? "/dev/shm" : "/tmp"
  }

  @Test(
    "Requests beyond the burst wait their turn, in order, and are counted; on each engine",
    arguments: [NSTemporaryDirectory(), LimitTests.place()])
  func rate(place: String) throws {
    let disk = try Disk(at: place)
    disk.device.limiter.set(
      RateLimits(requests: .init(read: Rate(perSecond: 5, burst: 4))), at: Monotonic.now)
    let start = ContinuousClock.now
    submit(7, disk)
    for _ in 0..<7 { #expect(try #require(disk.queue.waitUsed()).length == 513) }
    // Three of them came at the rate's pace; the clock may only be later, and a late thread need not wait each time.
    #expect(ContinuousClock.now - start >= .milliseconds(3 * 200 - 1))
    expectServed(7, disk)
    #expect((1...3).contains(counter(disk, "throttles")))
    #expect(counter(disk, "throttledNanoseconds") > 0)
    #expect(counter(disk, "reads") == 7)
  }

  @Test("Other limits let those go who wait, and lose no request")
  func change() throws {
    let disk = try Disk()
    disk.device.limiter.set(
      RateLimits(bytes: .init(total: Rate(perSecond: 1, burst: 512))), at: Monotonic.now)
    submit(8, disk)
    #expect(disk.queue.waitUsed() != nil)
    // The second would go in 512 seconds.
    disk.device.limiter.set(
      RateLimits(bytes: .init(total: Rate(perSecond: 1 << 20, burst: 512))), at: Monotonic.now)
    for _ in 0..<7 { #expect(disk.queue.waitUsed() != nil) }
    expectServed(8, disk)
    disk.device.limiter.set(RateLimits(), at: Monotonic.now)
    let before = counter(disk, "throttles")
    #expect(try disk.request(0, sector: 3, data: 512) == (0, 513))
    #expect(counter(disk, "throttles") == before)
  }

  @Test("A stop does not wait for the bucket: the request that waits is served, the rest is left in the ring")
  func stop() throws {
    let disk = try Disk()
    disk.device.limiter.set(
      RateLimits(
        requests: .init(total: Rate(perSecond: 1, burst: 1)), bytes: .init(total: Rate(perSecond: 1))),
      at: Monotonic.now)
    submit(5, disk)
    #expect(disk.queue.waitUsed() != nil)
    let deadline = ContinuousClock.now + .seconds(20)
    while counter(disk, "throttles") == 0, ContinuousClock.now < deadline {
      _ = Poll.one(disk.queue.call.raw, .readable, milliseconds: 1)
    }
    // 512 bytes at one a second: minutes. What was taken is finished, so the base is what was taken.
    #expect(disk.host.stop([0]) == [2])
    #expect(disk.queue.waitUsed(seconds: 1) != nil)
    expectServed(2, disk)
    #expect(disk.bytes(disk.data + 4096 * 3 + 1024, 1) == [0xee])
  }

  @Test("Flushes and identification are not limited, and a refused request is")
  func free() throws {
    let disk = try Disk()
    let start = Monotonic.now
    disk.device.limiter.set(
      RateLimits(requests: .init(total: Rate(perSecond: 1, burst: 1))), at: start)
    for _ in 0..<5 { #expect(try disk.request(4) == (0, 1)) }
    for _ in 0..<5 { #expect(try disk.request(8, data: 20).status == 0) }
    #expect(counter(disk, "throttles") == 0)
    #expect(try disk.request(1, sector: 1 << 50, data: 512, writable: false).status == 1)
    // The bucket's only token was taken by the write.
    #expect(disk.device.limiter.reserve(.read, bytes: 0, at: start) > start)
  }
}
