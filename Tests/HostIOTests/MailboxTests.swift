// Messages to a thread and answers from one.

import CLinux
import Foundation
import HostIO
import Testing

@Suite struct MailboxTests {
  @Test("Messages come out in the order they went in, and the box is quiet when it is empty")
  func order() throws {
    let box = try Mailbox<Int>()
    #expect(Poll.one(box.wakeDescriptor, .readable, milliseconds: 0).isEmpty)
    for i in 0..<3 { box.post(i) }
    #expect(Poll.one(box.wakeDescriptor, .readable, milliseconds: 0) == .readable)
    #expect(box.takeAll() == [0, 1, 2])
    #expect(Poll.one(box.wakeDescriptor, .readable, milliseconds: 0).isEmpty)
    #expect(box.takeAll() == [])
    box.post(3)
    #expect(Poll.one(box.wakeDescriptor, .readable, milliseconds: 0) == .readable)
    #expect(box.takeAll() == [3])
  }

  @Test("A box that is full of messages is signalled once")
  func signalsOnce() throws {
    let box = try Mailbox<Int>()
    for i in 0..<10 { box.post(i) }
    var count: UInt64 = 0
    #expect(read(box.wakeDescriptor, &count, 8) == 8)
    #expect(count == 1)
  }

  @Test(
    "No message of several threads is lost or overtakes another of its thread, and none waits without a wake")
  func manyProducers() throws {
    let box = try Mailbox<(thread: Int, number: Int)>()
    let each = 5000
    let producers = try (0..<4).map { thread in
      try PinnedThread(name: "producer", cpus: []) {
        for number in 0..<each { box.post((thread, number)) }
      }
    }
    var next = [0, 0, 0, 0]
    var total = 0
    while total < 4 * each {
      guard Poll.one(box.wakeDescriptor, .readable, milliseconds: 30_000) == .readable else { break }
      for message in box.takeAll() {
        #expect(message.number == next[message.thread])
        next[message.thread] = message.number + 1
        total += 1
      }
    }
    for producer in producers { producer.join() }
    #expect(total == 4 * each)
    #expect(box.takeAll().isEmpty)
  }
}

@Suite struct ReplyTests {
  @Test("A waiter gets the answer that another thread gives later")
  func later() throws {
    let reply = Reply<Int>()
    let go = try EventFD()
    let raw = go.raw
    let thread = try PinnedThread(name: "answer", cpus: []) {
      _ = Poll.one(raw, .readable, milliseconds: 30_000)
      reply.fulfil(42)
    }
    #expect(reply.wait(timeout: .milliseconds(1)) == nil)
    go.signal()
    #expect(reply.wait(timeout: .seconds(30)) == 42)
    thread.join()
  }

  @Test("The first answer stands")
  func first() {
    let reply = Reply<Int>()
    reply.fulfil(1)
    reply.fulfil(2)
    #expect(reply.wait() == 1)
    #expect(reply.wait(timeout: .zero) == 1)
  }

  @Test("Several threads get the same answer")
  func several() throws {
    let question = Reply<Int>()
    let answers = try (0..<4).map { _ in
      let answer = Reply<Int?>()
      let thread = try PinnedThread(name: "waiter", cpus: []) {
        answer.fulfil(question.wait(timeout: .seconds(30)))
      }
      return (answer, thread)
    }
    question.fulfil(7)
    for (answer, thread) in answers {
      #expect(answer.wait(timeout: .seconds(30)) == 7)
      thread.join()
    }
  }

  @Test(
    "Without an answer a wait ends, however odd its time",
    arguments: [Duration.zero, .seconds(-1), .nanoseconds(1), .seconds(Int64.min)])
  func noAnswer(time: Duration) throws {
    #expect(try onThread { Reply<Int>().wait(timeout: time) } == nil)
  }

  @Test(
    "A time longer than the clock can say is a wait like any other",
    arguments: [Int64.max, 9_223_372_036, 18_446_744_073])
  func farAway(seconds: Int64) throws {
    let reply = Reply<Int>()
    let thread = try PinnedThread(name: "answer", cpus: []) { reply.fulfil(1) }
    #expect(try onThread { reply.wait(timeout: .seconds(seconds)) } == 1)
    thread.join()
  }
}
