// Messages with descriptors over a stream, in whatever pieces they come.

import CLinux
import Foundation
import HostIO
import Testing

/// What a receiver got: the outcome, the bytes, and the descriptors by their inodes.
struct Received: Sendable, Equatable {
  var outcome: StreamOutcome
  var bytes: [UInt8]
  var inodes: [UInt64?]
}

extension UnixStream {
  /// Receives `count` bytes; a span that is not complete has zeros at its end.
  func receive(_ count: Int, stop: Int32 = -1, timeout: Duration? = .seconds(30)) throws -> Received {
    var bag = DescriptorBag()
    var bytes = [UInt8](repeating: 0, count: count)
    let outcome = try bytes.withUnsafeMutableBytes {
      try receive(into: $0, collecting: &bag, stop: stop, timeout: timeout)
    }
    var inodes: [UInt64?] = []
    while let descriptor = bag.takeFirst() {
      inodes.append(isCloseOnExec(descriptor.raw) ? inode(of: descriptor.raw) : nil)
    }
    return Received(outcome: outcome, bytes: bytes, inodes: inodes)
  }

  @discardableResult
  func send(
    _ bytes: [UInt8], _ descriptors: [Int32] = [], stop: Int32 = -1, timeout: Duration = .seconds(30)
  ) throws -> StreamOutcome {
    try bytes.withUnsafeBytes {
      try send($0, descriptors: descriptors, stop: stop, timeout: timeout)
    }
  }
}

@Suite struct UnixStreamReceiveTests {
  @Test("Descriptors arrive in order, closed on exec, with the bytes they were sent with")
  func descriptors() throws {
    let pair = try UnixStream.pair()
    let one = try memoryFile()
    let two = try memoryFile()
    let three = try memoryFile()
    try pair.first.send([1, 2, 3], [one.raw, two.raw, three.raw])
    let got = try pair.second.receive(3)
    let inodes = [inode(of: one.raw), inode(of: two.raw), inode(of: three.raw)]
    #expect(got == Received(outcome: .complete, bytes: [1, 2, 3], inodes: inodes))
  }

  @Test("A span is filled however its bytes arrive, and keeps descriptors that came with any of them")
  func pieces() throws {
    let pair = try UnixStream.pair()
    let one = try memoryFile()
    let two = try memoryFile()
    let inodes = [inode(of: one.raw), inode(of: two.raw)]
    let message = (0..<40).map { UInt8($0) }
    let reader = UnixStream(adopting: OwnedFD(adopting: dup(pair.second.raw)))
    let result = Reply<Received?>()
    let raw = reader.raw
    let thread = try PinnedThread(name: "reader", cpus: []) {
      let stream = UnixStream(adopting: OwnedFD(adopting: dup(raw)))
      result.fulfil(try? stream.receive(40))
    }
    for (i, byte) in message.enumerated() {
      try pair.first.send([byte], i == 0 ? [one.raw] : i == 17 ? [two.raw] : [])
    }
    thread.join()
    #expect(result.wait(timeout: .zero) == Received(outcome: .complete, bytes: message, inodes: inodes))
  }

  @Test("Of two messages that are there together each keeps its descriptors")
  func coalesced() throws {
    let pair = try UnixStream.pair()
    let one = try memoryFile()
    let two = try memoryFile()
    let three = try memoryFile()
    try pair.first.send([UInt8](repeating: 1, count: 20), [one.raw])
    try pair.first.send([UInt8](repeating: 2, count: 12))
    try pair.first.send([UInt8](repeating: 3, count: 12), [two.raw, three.raw])
    let spans = [12, 8, 12, 12]
    let got = try spans.map { try pair.second.receive($0) }
    #expect(got.map(\.bytes.first) == [1, 1, 2, 3])
    #expect(got.map(\.inodes.count) == [1, 0, 0, 2])
    #expect(got[3].inodes == [inode(of: two.raw), inode(of: three.raw)])
  }

  @Test("As many descriptors as there is room for arrive")
  func limit() throws {
    let (count, leaked) = try withOwnDescriptors { () -> Int in
      let pair = try UnixStream.pair()
      let file = try memoryFile()
      try pair.first.send([1], Array(repeating: file.raw, count: UnixStream.descriptorLimit))
      return try pair.second.receive(1).inodes.count
    }
    #expect(count == 64)
    #expect(leaked == [])
  }

  @Test("More descriptors than that close all of them", arguments: [65, 253])
  func truncated(count: Int) throws {
    let (error, leaked) = try withOwnDescriptors { () -> (HostError?, Int, Int) in
      let pair = try UnixStream.pair()
      let file = try memoryFile()
      try pair.first.send([1], [file.raw])
      try pair.first.send([2], Array(repeating: file.raw, count: count))
      let before = openDescriptors().count
      var bag = DescriptorBag()
      var bytes = [UInt8](repeating: 0, count: 2)
      do {
        _ = try bytes.withUnsafeMutableBytes {
          try pair.second.receive(into: $0, collecting: &bag, stop: -1, timeout: .seconds(30))
        }
      } catch {
        return (error as? HostError, bag.count, openDescriptors().count - before)
      }
      return (nil, bag.count, 0)
    }
    #expect(error.0 == .tooManyDescriptors)
    #expect(error.1 == 0)
    #expect(error.2 == 0)
    #expect(leaked == [])
  }

  @Test("Descriptors that this process has no room for are an error, and none of them stays")
  func noRoom() throws {
    let (result, leaked) = try withOwnDescriptors { () -> (HostError?, Int) in
      let pair = try UnixStream.pair()
      let file = try memoryFile()
      try pair.first.send([1], [file.raw, file.raw, file.raw])
      let taken = try exhaustDescriptors(spare: 2)
      defer { for raw in taken { close(raw) } }
      var bag = DescriptorBag()
      var bytes: [UInt8] = [0]
      do {
        _ = try bytes.withUnsafeMutableBytes {
          try pair.second.receive(into: $0, collecting: &bag, stop: -1, timeout: .seconds(30))
        }
      } catch {
        // Both places are free again.
        let first = dup(0), second = dup(0)
        defer { for raw in [first, second] { close(raw) } }
        return (error as? HostError, first >= 0 && second >= 0 ? bag.count : -1)
      }
      return (nil, 0)
    }
    #expect(result.0 == .system(call: "recvmsg", code: EMFILE))
    #expect(result.1 == 0)
    #expect(leaked == [])
  }

  @Test("Descriptors of a message that breaks off are closed")
  func brokenOff() throws {
    let (outcome, leaked) = try withOwnDescriptors { () -> StreamOutcome in
      let pair = try UnixStream.pair()
      let file = try memoryFile()
      try pair.first.send([1, 2], [file.raw, file.raw])
      pair.first.shutdown()
      var bag = DescriptorBag()
      var bytes = [UInt8](repeating: 0, count: 12)
      return try bytes.withUnsafeMutableBytes {
        try pair.second.receive(into: $0, collecting: &bag, stop: -1, timeout: .seconds(30))
      }
    }
    #expect(outcome == .endInsideMessage)
    #expect(leaked == [])
  }

  @Test("The end of the stream before the first byte is told from one within a message")
  func ends() throws {
    let pair = try UnixStream.pair()
    try pair.first.send([1, 2, 3])
    pair.first.shutdown()
    let got = [try pair.second.receive(2), try pair.second.receive(2), try pair.second.receive(2)]
    #expect(got.map(\.outcome) == [.complete, .endInsideMessage, .endOfStream])
  }

  @Test("A peer that goes with our bytes unread is the end of the stream")
  func reset() throws {
    let pair = try UnixStream.pair()
    try pair.first.send([1])
    let raw = pair.first.raw
    let reader = UnixStream(adopting: OwnedFD(adopting: dup(raw)))
    // The last reference to the second end goes here.
    func drop(_ pair: consuming UnixStreamPair) {}
    drop(pair)
    let got = try reader.receive(1)
    #expect(got.outcome == .endOfStream)
    #expect(try reader.send([1]) == .endOfStream)
  }

  @Test("Nothing comes in time: timed out, with what came so far kept", arguments: [0, 20])
  func timeouts(milliseconds: Int) throws {
    let pair = try UnixStream.pair()
    let nothing = try pair.second.receive(2, timeout: .milliseconds(milliseconds))
    #expect(nothing.outcome == .timedOut)
    try pair.first.send([7])
    let part = try pair.second.receive(2, timeout: .milliseconds(milliseconds))
    #expect(part == Received(outcome: .timedOut, bytes: [7, 0], inodes: []))
    try pair.first.send([1, 2])
    let whole = try pair.second.receive(2, timeout: .milliseconds(milliseconds))
    #expect(whole.outcome == .complete)
  }

  @Test("The stop descriptor ends a wait that is under way")
  func stopsWaiting() throws {
    let stop = try EventFD()
    let pair = try UnixStream.pair()
    let raw = (pair.second.raw, stop.raw)
    let result = Reply<StreamOutcome?>()
    let thread = try PinnedThread(name: "reader", cpus: []) {
      let stream = UnixStream(adopting: OwnedFD(adopting: dup(raw.0)))
      result.fulfil(try? stream.receive(2, stop: raw.1, timeout: nil).outcome)
    }
    try pair.first.send([1])
    stop.signal()
    #expect(result.wait(timeout: .seconds(30)) == .stopped)
    thread.join()
  }

  @Test("The stop descriptor goes before bytes that are there")
  func stopsFirst() throws {
    let stop = try EventFD()
    let pair = try UnixStream.pair()
    try pair.first.send([1])
    stop.signal()
    let outcome = try pair.second.receive(1, stop: stop.raw, timeout: .seconds(30)).outcome
    #expect(outcome == .stopped)
    stop.drain()
    let rest = try pair.second.receive(1, stop: stop.raw, timeout: .seconds(30))
    #expect(rest.bytes == [1])
  }

  @Test("An empty span is complete at once and takes nothing")
  func emptySpan() throws {
    let pair = try UnixStream.pair()
    let empty = try pair.second.receive(0, timeout: nil)
    #expect(empty.outcome == .complete)
  }

  @Test("A signal does not break a message")
  func interrupted() throws {
    signal(SIGUSR2) { _ in }
    let pair = try UnixStream.pair()
    let raw = pair.second.raw
    let ready = Reply<UInt>()
    let result = Reply<Received?>()
    let thread = try PinnedThread(name: "reader", cpus: []) {
      let stream = UnixStream(adopting: OwnedFD(adopting: dup(raw)))
      var set = sigset_t()
      sigemptyset(&set)
      sigaddset(&set, SIGUSR2)
      pthread_sigmask(SIG_UNBLOCK, &set, nil)
      ready.fulfil(UInt(pthread_self()))
      result.fulfil(try? stream.receive(200))
      pthread_sigmask(SIG_BLOCK, &set, nil)
    }
    let target = pthread_t(ready.wait())
    for i in 0..<200 {
      pthread_kill(target, SIGUSR2)
      if i == 199 { break }
      try pair.first.send([UInt8(i)])
    }
    try pair.first.send([199])
    #expect(result.wait(timeout: .seconds(30))??.bytes == (0..<200).map { UInt8($0) })
    thread.join()
  }
}

@Suite struct UnixStreamSendTests {
  @Test("A message larger than the socket's buffer goes in parts, its descriptors once")
  func large() throws {
    let pair = try UnixStream.pair()
    let file = try memoryFile()
    let message = (0..<4_000_000).map { UInt8(truncatingIfNeeded: $0 &* 31 >> 8) }
    let raw = pair.second.raw
    let result = Reply<Received?>()
    let thread = try PinnedThread(name: "reader", cpus: []) {
      let stream = UnixStream(adopting: OwnedFD(adopting: dup(raw)))
      result.fulfil(try? stream.receive(message.count))
    }
    let outcome = try pair.first.send(message, [file.raw])
    #expect(outcome == .complete)
    let got = result.wait(timeout: .seconds(30))
    #expect(got??.outcome == .complete)
    #expect(got??.bytes == message)
    #expect(got??.inodes == [inode(of: file.raw)])
    thread.join()
  }

  @Test("A peer that does not read costs the time given and no more", arguments: [false, true])
  func full(blocking: Bool) throws {
    let outcomes = try onThread { () -> [StreamOutcome] in
      let pair = try UnixStream.pair()
      // An adopted socket may well block by itself.
      if blocking { _ = clx_fcntl_int(pair.first.raw, F_SETFL, 0) }
      let message = [UInt8](repeating: 1, count: 4_000_000)
      return [
        try pair.first.send(message, timeout: .milliseconds(20)),
        try pair.first.send(message, timeout: .zero),
      ]
    }
    #expect(outcomes == [.timedOut, .timedOut])
  }

  @Test("The stop descriptor ends a send that waits")
  func stopped() throws {
    let stop = try EventFD()
    let raw = stop.raw
    let result = Reply<StreamOutcome?>()
    let thread = try PinnedThread(name: "sender", cpus: []) {
      result.fulfil(
        try? UnixStream.pair().first.send(
          [UInt8](repeating: 1, count: 4_000_000), stop: raw, timeout: .seconds(60)))
    }
    stop.signal()
    #expect(result.wait(timeout: .seconds(30)) == .stopped)
    thread.join()
  }

  @Test("A peer that is gone is the end of the stream, not a signal that kills")
  func gone() throws {
    let pair = try UnixStream.pair()
    pair.second.shutdown()
    let outcome = try pair.first.send([1])
    #expect(outcome == .endOfStream)
  }

  @Test("Descriptors without a byte to carry them are refused, and so are those that are not open")
  func refused() throws {
    let errors = try onThread { () -> [HostError?] in
      let pair = try UnixStream.pair()
      var errors: [HostError?] = []
      for (bytes, descriptor) in [([], Int32(0)), ([UInt8(1)], -1)] {
        do {
          try pair.first.send(bytes, [descriptor])
          errors.append(nil)
        } catch { errors.append(error as? HostError) }
      }
      return errors
    }
    #expect(errors == [.system(call: "sendmsg", code: EINVAL), .system(call: "sendmsg", code: EBADF)])
  }

  @Test("A stream opened and closed a thousand times, with descriptors in flight, leaves nothing open")
  func cycles() throws {
    let (_, leaked) = try withOwnDescriptors {
      for i in 0..<1000 {
        let pair = try UnixStream.pair()
        let file = try memoryFile()
        try pair.first.send([1, 2], [file.raw, file.raw])
        if i % 3 == 0 { _ = try pair.second.receive(2) }
        if i % 3 == 1 { _ = try pair.second.receive(1) }
      }
    }
    #expect(leaked == [])
  }
}
