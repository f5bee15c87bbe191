// Counters to wait on, how one is recognised, and poll(2).

import CLinux
import Foundation
import HostIO
import Testing

@Suite struct EventFDTests {
  /// An eventfd with flags and a counter of our choice.
  private func foreign(_ count: UInt64 = 0, blocking: Bool = false, semaphore: Bool = false) throws -> OwnedFD
  {
    var flags = Int32(EFD_CLOEXEC)
    if !blocking { flags |= Int32(EFD_NONBLOCK) }
    if semaphore { flags |= Int32(EFD_SEMAPHORE) }
    let event = OwnedFD(adopting: eventfd(0, flags))
    var count = count
    if count > 0, write(event.raw, &count, 8) != 8 { throw HostError.system(call: "write", code: errno) }
    return event
  }

  private static let full = UInt64.max - 1

  private func value(of event: borrowing OwnedFD) -> UInt64? {
    guard Poll.one(event.raw, .readable, milliseconds: 0).contains(.readable) else { return 0 }
    var count: UInt64 = 0
    return read(event.raw, &count, 8) == 8 ? count : nil
  }

  @Test("A signal makes it readable until it is drained, and draining says whether there was one")
  func signals() throws {
    let event = try EventFD()
    var drained = [event.drain()]
    #expect(Poll.one(event.raw, .readable, milliseconds: 0).isEmpty)
    event.signal()
    event.signal()
    #expect(Poll.one(event.raw, .readable, milliseconds: 0) == .readable)
    drained += [event.drain(), event.drain()]
    #expect(drained == [false, true, false])
    #expect(isCloseOnExec(event.raw))
  }

  @Test("Signalling a full counter of somebody else's blocks nobody and changes nothing")
  func signalsFull() throws {
    let left = try onThread { () -> UInt64? in
      let event = try foreign(Self.full, blocking: true)
      EventFD.signal(event.raw)
      return value(of: event)
    }
    #expect(left == Self.full)
  }

  @Test("Signalling somebody else's adds one")
  func signalsForeign() throws {
    let event = try foreign(5)
    EventFD.signal(event.raw)
    let left = value(of: event)
    #expect(left == 6)
  }

  @Test(
    "An eventfd is recognised whatever its flags and counter are, and keeps its counter",
    arguments: [0, 7, UInt64.max - 1], [(false, false), (true, false), (false, true), (true, true)])
  func recognised(count: UInt64, flags: (blocking: Bool, semaphore: Bool)) throws {
    let (answer, left) = try onThread { () -> (Bool, UInt64?) in
      let event = try foreign(count, blocking: flags.blocking, semaphore: flags.semaphore)
      return (EventFD.isEventFD(event), flags.semaphore ? count : value(of: event))
    }
    #expect(answer)
    #expect(left == count)
  }

  enum Other: CaseIterable {
    case pipeIn, pipeOut, socket, memory, folder, null, zero, path, timer, poll, signals, watch, process,
      nothing
  }

  private typealias OneNumber = @convention(c) (Int32) -> Int32
  private typealias TwoNumbers = @convention(c) (Int32, Int32) -> Int32

  private func make(_ kind: Other) throws -> OwnedFD {
    func two(_ call: (UnsafeMutablePointer<Int32>) -> Int32, _ index: Int) -> OwnedFD {
      var ends: [Int32] = [-1, -1]
      guard call(&ends) == 0 else { return OwnedFD(adopting: -1) }
      close(ends[1 - index])
      return OwnedFD(adopting: ends[index])
    }
    switch kind {
    case .pipeIn: return two({ pipe($0) }, 0)
    case .pipeOut: return two({ pipe($0) }, 1)
    case .socket: return OwnedFD(adopting: socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue), 0))
    case .memory: return try memoryFile()
    case .folder: return OwnedFD(adopting: open("/tmp", O_RDONLY))
    case .null: return OwnedFD(adopting: open("/dev/null", O_RDWR))
    case .zero: return OwnedFD(adopting: open("/dev/zero", O_RDWR))
    case .path: return OwnedFD(adopting: clx_open("/tmp", clx_O_PATH, 0))
    case .timer: return OwnedFD(adopting: try libraryCall("timerfd_create", as: TwoNumbers.self)(1, 0))
    case .poll: return OwnedFD(adopting: try libraryCall("epoll_create1", as: OneNumber.self)(0))
    case .signals:
      var none = sigset_t()
      sigemptyset(&none)
      return OwnedFD(adopting: clx_signalfd(&none))
    case .watch: return OwnedFD(adopting: try libraryCall("inotify_init1", as: OneNumber.self)(0))
    case .process: return OwnedFD(adopting: try libraryCall("pidfd_open", as: TwoNumbers.self)(getpid(), 0))
    case .nothing: return OwnedFD(adopting: -1)
    }
  }

  @Test("Nothing else is taken for an eventfd", arguments: Other.allCases)
  func others(kind: Other) throws {
    let answer = try onThread { () -> Bool in
      let descriptor = try make(kind)
      guard descriptor.raw >= 0 || kind == .nothing else { throw Unexpected("could not make one") }
      return EventFD.isEventFD(descriptor)
    }
    #expect(!answer)
  }
}

@Suite struct PollTests {
  @Test("Descriptors are answered in order, and a negative one is passed over")
  func inOrder() throws {
    let quiet = try EventFD()
    let ready = try EventFD()
    ready.signal()
    let answer = Poll.any([(quiet.raw, .readable), (-1, .readable), (ready.raw, .readable)], milliseconds: 0)
    #expect(answer == [[], [], .readable])
  }

  @Test("A closed descriptor is invalid at once")
  func closed() {
    #expect(Poll.one(1_000_000, .readable, milliseconds: -1) == .invalid)
  }

  @Test("A wait keeps its end under a stream of signals")
  func interrupted() throws {
    signal(SIGUSR2) { _ in }
    let ended = Reply<Bool>()
    let ready = Reply<UInt>()
    let thread = try PinnedThread(name: "poll", cpus: []) {
      var set = sigset_t()
      sigemptyset(&set)
      sigaddset(&set, SIGUSR2)
      pthread_sigmask(SIG_UNBLOCK, &set, nil)
      ready.fulfil(UInt(pthread_self()))
      ended.fulfil(Poll.any([], milliseconds: 300).isEmpty)
      pthread_sigmask(SIG_BLOCK, &set, nil)
    }
    let target = ready.wait()
    let deadline = ContinuousClock.now + .seconds(20)
    while ended.wait(timeout: .milliseconds(20)) == nil, ContinuousClock.now < deadline {
      pthread_kill(pthread_t(target), SIGUSR2)
    }
    #expect(ended.wait(timeout: .zero) == true)
    _ = ended.wait(timeout: .seconds(5))
    thread.join()
  }
}
