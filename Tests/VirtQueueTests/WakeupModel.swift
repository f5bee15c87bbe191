// A driver and a device that let each other sleep, as a state machine in which every interleaving can be visited: each has
// a store buffer, as x86 processors do, which empties when it likes and must be empty where there is a fence. The device's
// steps are `RingSignals`, the code of both rings; the driver's are written down here from the specification.

import VhostFrontend
import VirtQueue

/// How the two sides tell each other what they want.
enum Wishes: String, CaseIterable, Sendable {
  case splitEventIndex, splitFlags, packedEventIndex, packedFlags
  var isPacked: Bool { self == .packedEventIndex || self == .packedFlags }
  var hasEventIndex: Bool { self == .splitEventIndex || self == .packedEventIndex }
}

/// What can be left out, to see that it is needed.
enum Omission: String, CaseIterable, Sendable {
  case nothing, fenceAfterShow, fenceAfterAsk, lookAgain, driverFence
}

/// The shared words. Positions are counted in chains; `available` and `used` stand for the indices (split) or the flags of
/// the descriptors up to there (packed).
enum Word: Int, Sendable { case available, used, driverWish, deviceWish }

/// Four words and a processor's view of them.
struct Words: Hashable {
  var values: [UInt32]
  subscript(word: Word) -> UInt32 {
    get { values[word.rawValue] }
    set { values[word.rawValue] = newValue }
  }
}

struct Store: Hashable {
  var word: Word
  var value: UInt32
}

/// One step that a side wants to do next.
enum ModelStep { case load(Word), store(Word, UInt32), fence }

/// The geometry, and the words' meaning.
struct WakeupRules: Sendable {
  let wishes: Wishes
  let omission: Omission
  /// Chains in all, and how many may be out.
  let chains: Int
  let depth: Int
  /// Packed: descriptors in the ring. Split: where the index starts.
  let size: UInt16 = 3
  let start: UInt16

  init(_ wishes: Wishes, _ omission: Omission, chains: Int = 3, depth: Int = 2) {
    (self.wishes, self.omission, self.chains, self.depth) = (wishes, omission, chains, depth)
    // Just before the 16 bits run over.
    start = wishes.isPacked ? 0 : 0xfffe
  }

  /// The split index after so many chains, or the packed position's index.
  func index(_ count: UInt32) -> UInt16 {
    wishes.isPacked ? UInt16(count % UInt32(size)) : start &+ UInt16(count)
  }
  func wrap(_ count: UInt32) -> Bool { count / UInt32(size) % 2 == 0 }
  /// A wish to be told at the step past `count`.
  func wish(at count: UInt32) -> UInt32 {
    switch wishes {
    case .splitEventIndex: UInt32(index(count))
    case .splitFlags, .packedFlags: 0
    case .packedEventIndex: UInt32(index(count)) | (wrap(count) ? 0x8000 : 0) | 2 << 16
    }
  }
  /// The wish not to be told; nil where an old index says so already.
  var noWish: UInt32? {
    switch wishes {
    case .splitEventIndex: nil
    case .splitFlags: 1
    case .packedEventIndex, .packedFlags: 1 << 16
    }
  }
}

/// The device between two steps on memory: `RingSignals` is run from the beginning of an operation with what its loads have
/// returned so far, and the step after those is its next one.
struct ModelSignals: RingSignals {
  let rules: WakeupRules
  /// What the operation's steps have returned: for a store or a fence, 0.
  let returned: [UInt32]
  var device: ModelDevice
  private(set) var next: ModelStep?
  private var done = 0

  init(_ rules: WakeupRules, _ device: ModelDevice) {
    (self.rules, self.device, returned) = (rules, device, device.returned)
  }

  private mutating func step(_ step: ModelStep) -> UInt32 {
    if next != nil { return 0 }
    guard done < returned.count else {
      next = step
      return 0
    }
    done += 1
    return returned[done - 1]
  }

  mutating func show() -> UInt32 {
    let before = device.published
    device.published = device.taken
    _ = step(.store(.used, device.taken))
    return before
  }

  mutating func fence() {
    let this = device.operation == .publish ? Omission.fenceAfterShow : .fenceAfterAsk
    if rules.omission != this { _ = step(.fence) }
  }

  mutating func wantsCall(since before: UInt32) -> Bool {
    let word = step(.load(.driverWish))
    let (new, old) = (rules.index(device.published), rules.index(before))
    return switch rules.wishes {
    case .splitEventIndex: EventIndex.passed(event: UInt16(word), new: new, old: old)
    case .splitFlags: EventIndex.wantsCall(flags: UInt16(word))
    case .packedEventIndex, .packedFlags:
      EventIndex.wantsCall(
        word: word, eventIndex: rules.wishes.hasEventIndex, new: new, old: old,
        wrap: rules.wrap(device.published), size: rules.size)
    }
  }

  mutating func askForKick() { _ = step(.store(.deviceWish, rules.wish(at: device.taken))) }

  mutating func lookAgain() -> Bool {
    if rules.omission == .lookAgain { return false }
    return step(.load(.available)) != device.taken
  }

  /// Looks for chains and completes all it finds.
  mutating func serve() { device.taken = max(device.taken, step(.load(.available))) }

  mutating func suppress() { if let wish = rules.noWish { _ = step(.store(.deviceWish, wish)) } }
}

/// What the device is at.
struct ModelDevice: Hashable {
  enum Operation { case serve, publish, park, asleep, unpark }
  var operation = Operation.unpark
  var returned: [UInt32] = []
  /// Chains taken (and done), and shown as used.
  var taken: UInt32 = 0
  var published: UInt32 = 0

  /// The next step on memory; nil where the operation has none left, and `self` has gone on to the next one.
  mutating func advance(_ rules: WakeupRules, call: inout Bool) -> ModelStep? {
    var signals = ModelSignals(rules, self)
    var (answer, following) = (false, Operation.asleep)
    switch operation {
    case .serve:
      signals.serve()
      following = signals.device.taken != published ? .publish : .park
    case .publish:
      answer = signals.showAndAsk()
      following = .serve
    case .park:
      following = signals.askAndLook() ? .unpark : .asleep
    case .unpark:
      signals.suppress()
      following = .serve
    case .asleep: return nil
    }
    if let step = signals.next { return step }
    (taken, published) = (signals.device.taken, signals.device.published)
    if answer { call = true }
    (operation, returned) = (following, [])
    return nil
  }
}

/// The driver: adds chains while it may, and sleeps until something is used.
struct ModelDriver: Hashable {
  enum Place: Hashable { case free, added, addFenced, asked, askFenced, asleep, awake }
  var place = Place.free
  var added: UInt32 = 0
  var seen: UInt32 = 0
}
