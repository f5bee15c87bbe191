// What a session knows of its front-end's IOMMU: the IOTLB, who waits for which translation, and what was asked for it. A
// front-end may take its time, or never answer: nobody here waits for it. On the control thread; queue threads leave their
// misses on the desk, and look into the IOTLB.

import HostIO
import VirtQueue

/// What one queue misses, left by its thread.
struct MissNote: Sendable {
  let queue: Int
  let misses: [TranslationMiss]
}

/// Where queue threads leave what they miss, and the control thread wakes up for it.
typealias MissDesk = Mailbox<MissNote>

/// Translations that a queue's next chain, or a ring itself, waits for.
struct MissWait {
  var open: Set<TranslationMiss>
  /// What the front-end will not map, or not for this access.
  var denied: [TranslationMiss] = []
}

/// The book of what is missing. Bounded: each queue waits for at most one chain's round and its own areas.
struct Translation {
  let iotlb = IOTLB()
  let desk: MissDesk
  /// By queue: chains that wait, and rings whose own areas are missing.
  var chains: [Int: MissWait] = [:]
  var areas: [Int: MissWait] = [:]
  /// Started rings that touch their areas no more, since these are not translated any more.
  var suspended: Set<Int> = []

  /// What the front-end is to be asked, or was and has not settled, each once, with the number of its question. Guests use
  /// addresses again at once: an answer to a question that an update had settled is none to the next one about that address.
  private var asked: [TranslationMiss: UInt64] = [:]
  private var questions: UInt64 = 0
  private typealias Question = (miss: TranslationMiss, number: UInt64)
  private var unsent: [Question] = []
  /// Sent with NEED_REPLY: answers come in this order.
  private var unanswered: [Question] = []
  /// More than this are not sent before some are answered.
  private static let answersOwed = 4096

  init(desk: MissDesk) { self.desk = desk }

  var isWaiting: Bool { !chains.isEmpty || !areas.isEmpty }
  var hasUnsent: Bool { !unsent.isEmpty && unanswered.count < Self.answersOwed }
  var isOwedAnswers: Bool { !unanswered.isEmpty }

  mutating func ask(_ misses: some Sequence<TranslationMiss>) {
    for miss in misses where asked[miss] == nil {
      questions += 1
      asked[miss] = questions
      unsent.append((miss, questions))
    }
  }

  /// Hands on what is still to be sent, until `send` says that no more goes.
  mutating func flush(needsReply: Bool, _ send: (TranslationMiss) -> Bool) {
    while let question = unsent.first, unanswered.count < Self.answersOwed {
      if asked[question.miss] == question.number {
        guard send(question.miss) else { return }
        if needsReply { unanswered.append(question) }
      }
      unsent.removeFirst()
    }
  }

  /// There is another channel: what was asked on the old one is asked again.
  mutating func askAgain() {
    unanswered = []
    unsent = asked.map { ($0.key, $0.value) }
  }

  /// The front-end has answered the oldest question: 0 after it sent an update.
  mutating func answered(_ value: UInt64) {
    guard !unanswered.isEmpty else { return }
    let question = unanswered.removeFirst()
    guard asked[question.miss] == question.number else { return }
    settle([question.miss], isDenied: { _ in value != 0 })
  }

  /// A range was mapped: who waits for something in it waits no more, whether it is of use or not.
  mutating func mapped(_ range: IOVARange) {
    let iotlb = iotlb
    settle(asked.keys.filter { range.contains($0.address) }) {
      iotlb.find($0.address, upTo: 1, for: $0.access) == nil
    }
  }

  private mutating func settle(
    _ misses: some Collection<TranslationMiss>, isDenied: (TranslationMiss) -> Bool
  ) {
    for miss in misses {
      asked[miss] = nil
      let denied = isDenied(miss)
      Self.settle(miss, denied, in: &chains)
      Self.settle(miss, denied, in: &areas)
    }
  }

  private static func settle(_ miss: TranslationMiss, _ isDenied: Bool, in waits: inout [Int: MissWait]) {
    for index in waits.keys where waits[index]?.open.remove(miss) != nil && isDenied {
      waits[index]?.denied.append(miss)
    }
  }

  /// A queue has stopped.
  mutating func forget(_ index: Int) {
    chains[index] = nil
    areas[index] = nil
    suspended.remove(index)
  }

  /// No queue runs: mappings may go without our being told, so they are asked for again.
  mutating func flushAll() {
    iotlb.remove(.everything)
    asked = [:]
    unsent = []
  }
}
