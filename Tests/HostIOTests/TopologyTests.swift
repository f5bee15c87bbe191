// Processor lists, memory nodes, and signals to wait on.

import CLinux
import Foundation
import HostIO
import Testing

@Suite struct TopologyTests {
  @Test(
    "Processor lists are numbers and ranges",
    arguments: [
      ("0", [0]), ("0,2-5", [0, 2, 3, 4, 5]), ("3,1", [3, 1]), ("7-7", [7]), ("1023", [1023]), ("007", [7]),
    ])
  func parses(list: String, processors: [Int]) throws {
    #expect(try Topology.processors(list) == processors)
  }

  @Test(
    "Anything else is refused with the list in the message",
    arguments: [
      "", ",", "0,", ",0", "-", "1-", "-1", "5-2", "1-2-3", "a", "0x1", "1 ", " 1", "1024", "0-1024", "+1",
      "99999999999999999999", "0-99999999999999999999", "1,,2", "٣", "１", "1\u{0}", "½",
    ])
  func refuses(list: String) {
    #expect(throws: HostError.badProcessorList(list)) { try Topology.processors(list) }
  }

  @Test("The processors that we may run on are there, ascending, and as many as the system says")
  func allowed() {
    let processors = Topology.allowedProcessors
    #expect(!processors.isEmpty)
    #expect(processors == Set(processors).sorted())
    #expect(processors.count <= sysconf(Int32(_SC_NPROCESSORS_CONF)))
  }

  @Test("Asking about nodes and placing on them never fails the caller, whatever the host has")
  func nodes() throws {
    #expect(Topology.nodeCount >= 1)
    let mapping = try Mapping(anonymous: 1 << 20)
    mapping.base.storeBytes(of: 1, as: UInt8.self)
    let node = Topology.node(of: mapping.base)
    if let node { #expect((0..<1024).contains(node)) }
    let range = UnsafeMutableRawBufferPointer(start: mapping.base, count: mapping.length)
    for absent in [-1, 1023, 1024, Int.max, Int.min] {
      #expect(!Topology.prefer(node: absent, for: range))
      // On a thread of its own, which ends with the policy it was given.
      #expect(try onThread { Topology.runOn(node: absent) || Topology.allocateOn(node: absent) } == false)
    }
    if Topology.nodeCount == 1 {
      #expect(node == 0)
      #expect(!Topology.prefer(node: 0, for: range))
      #expect(try onThread { Topology.runOn(node: 0) || Topology.allocateOn(node: 0) } == false)
    } else {
      #expect(Topology.prefer(node: node ?? 0, for: range))
    }
    mapping.base.storeBytes(of: 2, toByteOffset: 1 << 19, as: UInt8.self)
  }
}

@Suite struct SignalFDTests {
  @Test("Blocked signals wait in the descriptor, each with its number, until they are read")
  func signals() throws {
    let seen = try onThread { () -> [Int32?] in
      let signals = try SignalFD([SIGUSR1, SIGTERM])
      guard Poll.one(signals.raw, .readable, milliseconds: 0).isEmpty, isCloseOnExec(signals.raw) else {
        throw Unexpected("readable before a signal came, or not close-on-exec")
      }
      let before = signals.next()
      pthread_kill(pthread_self(), SIGUSR1)
      let ready = Poll.one(signals.raw, .readable, milliseconds: 10_000)
      let first = signals.next()
      pthread_kill(pthread_self(), SIGTERM)
      return [before, ready == .readable ? first : nil, signals.next(), signals.next()]
    }
    #expect(seen == [nil, SIGUSR1, SIGTERM, nil])
  }

  @Test("The signals are blocked in the thread that asked")
  func blocked() throws {
    let blocked = try onThread { () -> [Bool] in
      var set = sigset_t()
      sigfillset(&set)
      pthread_sigmask(SIG_UNBLOCK, &set, nil)
      _ = try SignalFD([SIGUSR1])
      pthread_sigmask(SIG_BLOCK, nil, &set)
      let answer = [sigismember(&set, SIGUSR1) == 1, sigismember(&set, SIGUSR2) == 1]
      sigfillset(&set)
      pthread_sigmask(SIG_BLOCK, &set, nil)
      return answer
    }
    #expect(blocked == [true, false])
  }

  @Test("A number that is no signal is refused")
  func noSignal() throws {
    let error = try onThread { () -> HostError? in
      do throws(HostError) { _ = try SignalFD([SIGUSR1, 4711]) } catch { return error }
      return nil
    }
    #expect(error?.code == EINVAL)
  }
}
