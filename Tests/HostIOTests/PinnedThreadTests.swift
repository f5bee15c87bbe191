// Threads: their names, processors, signals and end.

import CLinux
import Foundation
import HostIO
import Testing

@Suite struct PinnedThreadTests {
  private func threadName() -> String {
    var name = [CChar](repeating: 0, count: 17)
    name.withUnsafeMutableBytes { _ = clx_prctl(PR_GET_NAME, UInt(bitPattern: $0.baseAddress), 0, 0, 0) }
    return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  @Test(
    "A thread has its name, as much of it as fits",
    arguments: [
      ("queue-0", "queue-0"), ("a-name-of-many-letters", "a-name-of-many-"), ("ääääääääää", "äääääää"),
      ("", ""),
    ])
  func names(given: String, kept: String) throws {
    #expect(try onThread(given) { threadName() } == kept)
  }

  @Test("A thread runs on the processor asked for", arguments: Topology.allowedProcessors.prefix(4))
  func pinned(processor: Int) throws {
    let reply = Reply<[Int]>()
    let thread = try PinnedThread(name: "pinned", cpus: [processor]) {
      reply.fulfil(Topology.allowedProcessors)
    }
    #expect(reply.wait(timeout: .seconds(30)) == [processor])
    #expect(thread.affinityError == nil)
    thread.join()
  }

  @Test("Without processors a thread runs where its starter may")
  func inherited() throws {
    let reply = Reply<[Int]>()
    let thread = try PinnedThread(name: "anywhere", cpus: []) { reply.fulfil(Topology.allowedProcessors) }
    #expect(reply.wait(timeout: .seconds(30)) == Topology.allowedProcessors)
    #expect(thread.affinityError == nil)
    thread.join()
  }

  @Test(
    "A thread whose processors are not there runs all the same, and says so",
    arguments: [[1023], [1024], [65536 + 0], [-1], [Int.max]])
  func absent(processors: [Int]) throws {
    let reply = Reply<[Int]>()
    let thread = try PinnedThread(name: "absent", cpus: processors) {
      reply.fulfil(Topology.allowedProcessors)
    }
    #expect(reply.wait(timeout: .seconds(30)) == Topology.allowedProcessors)
    #expect(thread.affinityError == .processorsUnavailable(processors))
    thread.join()
  }

  @Test("A thread that gets a part of its processors runs on those and names the others")
  func partlyAbsent() throws {
    let first = try #require(Topology.allowedProcessors.first)
    let reply = Reply<[Int]>()
    let thread = try PinnedThread(name: "partly", cpus: [1023, first]) {
      reply.fulfil(Topology.allowedProcessors)
    }
    #expect(reply.wait(timeout: .seconds(30)) == [first])
    #expect(thread.affinityError == .processorsUnavailable([1023]))
    thread.join()
  }

  @Test("Every signal is blocked in a thread but those of its own faults")
  func signals() throws {
    let open = try onThread { () -> Set<Int32> in
      var set = sigset_t()
      pthread_sigmask(SIG_BLOCK, nil, &set)
      // 32 and 33 are the C library's own, 9 and 19 cannot be blocked.
      return Set((1...64).filter { sigismember(&set, $0) == 0 && ![SIGKILL, SIGSTOP, 32, 33].contains($0) })
    }
    #expect(open == [SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS])
  }

  @Test("The starter's own signals stay as they were")
  func startersSignals() throws {
    func blocked() -> [Int32] {
      var set = sigset_t()
      pthread_sigmask(SIG_BLOCK, nil, &set)
      return (1...64).filter { sigismember(&set, $0) == 1 }
    }
    let before = blocked()
    try PinnedThread(name: "mask", cpus: []) {}.join()
    #expect(blocked() == before)
  }

  @Test("Joining waits for the end, and a second time returns at once")
  func joining() throws {
    let go = try EventFD()
    let raw = go.raw
    let done = Reply<Int>()
    let thread = try PinnedThread(name: "join", cpus: []) {
      _ = Poll.one(raw, .readable, milliseconds: 30_000)
      done.fulfil(1)
    }
    go.signal()
    thread.join()
    #expect(done.wait(timeout: .zero) == 1)
    thread.join()
  }

  @Test("A thread that nobody keeps runs to its end and gives back what it held")
  func forgotten() throws {
    final class Held: Sendable {
      let box: Reply<Bool>
      init(_ box: Reply<Bool>) { self.box = box }
      deinit { box.fulfil(true) }
    }
    let gone = Reply<Bool>()
    do {
      let held = Held(gone)
      _ = try PinnedThread(name: "forgotten", cpus: []) { _ = held }
    }
    #expect(gone.wait(timeout: .seconds(30)) == true)
  }
}
