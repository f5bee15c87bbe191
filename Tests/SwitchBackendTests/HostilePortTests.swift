// Ports whose guests are slow, gone, broken or hostile: nobody else notices.

import Foundation
import SwitchBackend
import Synchronization
import Testing
import VhostFrontend

@Suite("switch under hostile guests")
struct HostilePortTests {
  /// That two guests still hear each other.
  private func expectAlive(_ a: NetGuest, _ b: NetGuest, sourceLocation: SourceLocation = #_sourceLocation)
    throws
  {
    for round in 0..<20 {
      let sent = frame(to: b.mac, from: a.mac, 200 + round)
      try a.send(sent)
      #expect(try b.next().frame == sent, sourceLocation: sourceLocation)
    }
  }

  @Test("A guest without buffers loses frames, which are counted; nobody waits")
  func full() throws {
    let network = try TestSwitch(ports: 3)
    let a = try network.guest(0)
    let b = try network.guest(1, buffers: 4)
    let c = try network.guest(2)
    for _ in 0..<100 { try a.send(frame(to: broadcast, from: a.mac)) }
    network.wait("full", port: 1, 96)
    #expect(network.counter("delivered", port: 1) == 4)
    #expect(network.counter("full", port: 1) == 96)
    #expect(network.counter("delivered", port: 2) == 64)
    var count = 0
    while try c.take() != nil { count += 1 }
    #expect(count == 64)
    for _ in 0..<4 { #expect(try b.take() != nil) }
    try expectAlive(a, b)
  }

  @Test("Buffers that are too small for a frame are kept for one that fits")
  func small() throws {
    let network = try TestSwitch(ports: 2)
    let a = try network.guest(0)
    let b = try network.guest(1, features: NetBits.plain & ~NetBits.mergeable, buffers: 10, bufferBytes: 200)
    try a.send(frame(to: broadcast, from: a.mac, 1000))
    #expect(network.counter("tooSmall", port: 1) == 1)
    let fits = frame(to: broadcast, from: a.mac, 188)
    for _ in 0..<10 {
      try a.send(fits)
      #expect(try b.next().frame == fits)
    }
    #expect(try b.arena.damagedGuards() == [])
    // Mergeable: all there is, and still not enough; then just enough.
    let c = try TestSwitch(ports: 2)
    let d = try c.guest(0)
    let e = try c.guest(1, buffers: 5, bufferBytes: 200)
    try d.send(frame(to: broadcast, from: d.mac, 5 * 200 - 11))
    #expect(c.counter("full", port: 1) == 1)
    let exact = frame(to: broadcast, from: d.mac, 5 * 200 - 12)
    try d.send(exact)
    #expect(try e.next().frame == exact)
    #expect(try e.arena.damagedGuards() == [])
  }

  @Test(
    "NT01 NT03 NT04 NT05 NT07 NT16 chains that are no frame are dropped and counted, and the port goes on")
  func malformed() throws {
    let network = try TestSwitch(ports: 2)
    let a = try network.guest(0)
    let b = try network.guest(1)
    let zero = [UInt8](repeating: 0, count: 12)
    // NT01, NT03, NT16: too short.
    for length in [1, 11, 12, 25] {
      _ = try a.transmit.submit([DescriptorSpec(try a.arena.allocate(64), UInt32(length))])
      _ = try a.transmit.wait()
    }
    // Too long.
    let long = try a.arena.allocate(70_000)
    _ = try a.transmit.submit([DescriptorSpec(long, 69_000)])
    _ = try a.transmit.wait()
    // NT07: something to write in it; a group's address as the source.
    let place = try a.arena.allocate(256)
    try a.arena.write(zero + frame(to: b.mac, from: a.mac), at: place)
    _ = try a.transmit.submit([DescriptorSpec(place, 72), DescriptorSpec(place + 100, 8, write: true)])
    _ = try a.transmit.wait()
    try a.send(frame(to: b.mac, from: broadcast))
    #expect(network.counter("malformed", port: 0) == 7)
    // NT04, NT05: headers that may not be.
    for header: [UInt8] in [
      [1, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0],
      [0, 1, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0],
      [1, 3, 0, 0, 100, 0, 34, 0, 6, 0, 0, 0], [1, 0x7f, 0, 0, 100, 0, 34, 0, 6, 0, 0, 0],
      [0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
      [1, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0],
    ] {
      try a.send(frame(to: b.mac, from: a.mac), header: header)
    }
    #expect(network.counter("badHeader", port: 0) == 8)
    #expect(network.counter("delivered", port: 1) == 0)
    try expectAlive(a, b)
  }

  @Test("A receive queue with chains to read, or a broken one, is its guest's loss alone")
  func brokenReceiver() throws {
    let network = try TestSwitch(ports: 3)
    let a = try network.guest(0)
    let b = try network.guest(1, buffers: 0)
    let c = try network.guest(2)
    let place = try b.arena.allocate(4096)
    for _ in 0..<3 { _ = try #require(b.receive.ring.add([DescriptorSpec(place, 2000)])) }
    b.receive.publish()
    try a.send(frame(to: broadcast, from: a.mac))
    _ = try c.next()
    for _ in 0..<3 { #expect(try b.receive.wait().length == 0) }
    #expect(network.counter("malformed", port: 1) == 3)
    // Now a chain outside its memory, behind which the ring is looked at no more.
    _ = try #require(b.receive.ring.add([DescriptorSpec(place, 8, write: true), DescriptorSpec(place, 8)]))
    b.receive.publish()
    try a.send(frame(to: broadcast, from: a.mac))
    _ = try c.next()
    network.wait("faults", port: 1, 1)
    try expectAlive(a, c)
  }

  @Test("Guests that leave in the middle of traffic, and come back, take nobody with them")
  func leaving() throws {
    let network = try TestSwitch(ports: 3)
    let a = try network.guest(0)
    let c = try network.guest(2)
    for round in 0..<10 {
      let b = try network.guest(1, packed: round % 2 == 0, buffers: round * 6)
      for _ in 0..<20 {
        try a.submit(frame(to: broadcast, from: a.mac))
        try b.submit(frame(to: a.mac, from: b.mac))
      }
      b.driver.disconnect()
      for _ in 0..<20 { _ = try a.transmit.wait() }
      while try a.take() != nil {}
      while try c.take() != nil {}
    }
    while try a.take() != nil {}
    while try c.take() != nil {}
    network.wait("chains", port: 0, 200)
    let sent = frame(to: c.mac, from: a.mac, 99, number: 77)
    try a.send(sent)
    while try c.next().frame != sent {}
  }

  @Test("A stopped port takes nothing and goes on where it was")
  func stopped() throws {
    let network = try TestSwitch(ports: 2)
    let a = try network.guest(0)
    let b = try network.guest(1, buffers: 16)
    let sent = frame(to: b.mac, from: a.mac, 100)
    try a.send(sent)
    #expect(try b.next().frame == sent)
    let bases = try b.driver.stop()
    #expect(bases.count == 2)
    for _ in 0..<5 { try a.send(frame(to: b.mac, from: a.mac)) }
    #expect(network.counter("delivered", port: 1) == 1)
    try b.driver.start()
    try expectAlive(a, b)
    #expect(try b.arena.damagedGuards() == [])
  }

  @Test("One guest cannot push another's address out of the table by inventing its own")
  func inventions() throws {
    let network = try TestSwitch(ports: 3)
    let a = try network.guest(0)
    let b = try network.guest(1)
    let c = try network.guest(2, buffers: 0)
    try b.send(frame(to: broadcast, from: b.mac))
    _ = try a.next()
    for i in 0..<Switch.addressLimit {
      let invented: [UInt8] = [2, 7, UInt8(i >> 16), UInt8(i >> 8 & 0xff), UInt8(i & 0xff), 7]
      try c.submit(frame(to: [2, 7, 0, 0, 0, 7], from: invented))
      _ = try c.transmit.wait()
      // What is flooded meanwhile is not what this is about.
      while try a.take() != nil {}
      while try b.take() != nil {}
    }
    #expect(network.counter("learned", port: 2) > 1000)
    let before = network.counter("floods", port: 0)
    try a.send(frame(to: b.mac, from: a.mac))
    #expect(network.counter("floods", port: 0) == before)
  }

  /// Two guests' changes of memory, on threads of their own.
  private final class Changes: Sendable {
    let count = Atomic(0)
    let isEnough = Atomic(false)

    func repeatedly(_ driver: DeviceDriver) {
      while !isEnough.load(ordering: .relaxed) {
        let (table, files) = (driver.arena.table, driver.arena.descriptors)
        do {
          #expect(try driver.connection.setMemTable(table, descriptors: files) == .ok)
        } catch {
          Issue.record(error)
          return
        }
        count.add(1, ordering: .relaxed)
      }
    }
  }

  @Test("Both guests give their memory anew under traffic: a frame's copy holds on to what it began with")
  func remapping() throws {
    let network = try TestSwitch(ports: 2)
    let a = try network.guest(0, slots: false)
    let b = try network.guest(1, packed: true, slots: false)
    let changes = Changes()
    let ended = DispatchSemaphore(value: 0)
    for driver in [a.driver, b.driver] {
      Thread {
        changes.repeatedly(driver)
        ended.signal()
      }.start()
    }
    for round in 0..<300 {
      let sent = frame(to: b.mac, from: a.mac, 9000 + round, number: UInt8(truncatingIfNeeded: round))
      try a.send(sent, piece: 1000)
      #expect(try b.next().frame == sent)
    }
    changes.isEnough.store(true, ordering: .relaxed)
    for _ in 0..<2 { ended.wait() }
    #expect(changes.count.load(ordering: .relaxed) > 20)
    #expect(network.counter("faults", port: 0) + network.counter("faults", port: 1) == 0)
    #expect(try b.arena.damagedGuards() == [])
  }
}
