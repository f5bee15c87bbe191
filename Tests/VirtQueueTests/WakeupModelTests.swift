// Every interleaving of a few chains: in none are both sides asleep with work left. With any fence, or the second look, left
// out there is one, so the search does find what it looks for (SR14).

import Testing
import VhostFrontend
import VirtQueue

/// Both sides, the memory between them, and their eventfds.
private struct World: Hashable {
  var memory: Words
  var deviceStores: [Store] = []
  var driverStores: [Store] = []
  var device = ModelDevice()
  var driver = ModelDriver()
  var kick = false
  var call = false

  /// What a side sees: its own stores first.
  private func read(_ word: Word, _ stores: [Store]) -> UInt32 {
    stores.last { $0.word == word }?.value ?? memory[word]
  }

  // MARK: What may happen next

  func successors(_ rules: WakeupRules) -> [World] {
    var all: [World] = []
    if let store = deviceStores.first {
      var next = self
      next.memory[store.word] = store.value
      next.deviceStores.removeFirst()
      all.append(next)
    }
    if let store = driverStores.first {
      var next = self
      next.memory[store.word] = store.value
      next.driverStores.removeFirst()
      all.append(next)
    }
    if let next = deviceMove(rules) { all.append(next) }
    return all + driverMoves(rules)
  }

  private func deviceMove(_ rules: WakeupRules) -> World? {
    var next = self
    if device.operation == .asleep {
      guard kick else { return nil }
      next.kick = false
      next.device.operation = .unpark
      return next
    }
    guard let step = next.device.advance(rules, call: &next.call) else { return next }
    switch step {
    case .load(let word): next.device.returned.append(read(word, deviceStores))
    case .store(let word, let value):
      next.deviceStores.append(Store(word: word, value: value))
      next.device.returned.append(0)
    case .fence:
      guard deviceStores.isEmpty else { return nil }
      next.device.returned.append(0)
    }
    return next
  }

  private func with(_ change: (inout World) -> Void) -> World {
    var next = self
    change(&next)
    return next
  }

  private func driverMoves(_ rules: WakeupRules) -> [World] {
    let fenced = driverStores.isEmpty || rules.omission == .driverFence
    switch driver.place {
    case .free: return freeDriverMoves(rules)
    case .added: return fenced ? [with { $0.driver.place = .addFenced }] : []
    case .addFenced:
      return [
        with {
          if Self.wantsKick(read(.deviceWish, driverStores), at: driver.added, rules) { $0.kick = true }
          $0.driver.place = .free
        }
      ]
    case .asked: return fenced ? [with { $0.driver.place = .askFenced }] : []
    case .askFenced:
      return [
        with {
          let used = read(.used, driverStores)
          $0.driver.place = used == driver.seen ? .asleep : .awake
          $0.driver.seen = used
        }
      ]
    case .asleep:
      guard call else { return [] }
      return [
        with {
          $0.call = false
          $0.driver.seen = read(.used, driverStores)
          $0.driver.place = .awake
        }
      ]
    case .awake:
      return [
        with {
          if let wish = rules.noWish { $0.driverStores.append(Store(word: .driverWish, value: wish)) }
          $0.driver.place = .free
        }
      ]
    }
  }

  private func freeDriverMoves(_ rules: WakeupRules) -> [World] {
    var all: [World] = []
    if Int(driver.added) < rules.chains, Int(driver.added - driver.seen) < rules.depth {
      all.append(
        with {
          $0.driver.added += 1
          $0.driverStores.append(Store(word: .available, value: $0.driver.added))
          $0.driver.place = .added
        })
    }
    if driver.added > driver.seen {
      all.append(
        with {
          $0.driverStores.append(Store(word: .driverWish, value: rules.wish(at: driver.seen)))
          $0.driver.place = .asked
        })
    }
    return all
  }

  /// The driver's decision, with its own arithmetic.
  private static func wantsKick(_ word: UInt32, at added: UInt32, _ rules: WakeupRules) -> Bool {
    let new = rules.index(added)
    switch rules.wishes {
    case .splitEventIndex: return EventArithmetic.needs(event: UInt16(word), new: new, old: new &- 1)
    case .splitFlags: return word & 1 == 0
    case .packedEventIndex, .packedFlags:
      guard word >> 16 == 2 else { return word >> 16 == 0 }
      return EventArithmetic.needs(
        offsetWrap: UInt16(truncatingIfNeeded: word), new: new, old: new &- 1, wrap: rules.wrap(added),
        size: rules.size)
    }
  }

  func isFinished(_ rules: WakeupRules) -> Bool {
    Int(driver.seen) == rules.chains && driver.place == .free && device.operation == .asleep
  }

  var summary: String {
    "device \(device.operation), \(device.taken) taken; driver \(driver.place), \(driver.added) added, \(driver.seen) seen"
  }
}

/// Visits every state; the first that nothing follows and that is not the end, and how many there were.
private func search(_ rules: WakeupRules) -> (stuck: World?, states: Int, finished: Bool) {
  let first = World(memory: Words(values: [0, 0, rules.noWish ?? 0x7fff, rules.noWish ?? 0x7fff]))
  var seen: Set<World> = [first]
  var waiting = [first]
  var finished = false
  while let world = waiting.popLast() {
    let next = world.successors(rules)
    if next.isEmpty {
      guard world.isFinished(rules) else { return (world, seen.count, finished) }
      finished = true
    }
    for state in next where seen.insert(state).inserted { waiting.append(state) }
  }
  return (nil, seen.count, finished)
}

@Suite("every interleaving of kicks and calls")
struct WakeupModelTests {
  @Test("SR14: no wake-up is lost in any interleaving", arguments: Wishes.allCases)
  func complete(wishes: Wishes) {
    let found = search(WakeupRules(wishes, .nothing))
    #expect(found.stuck == nil, "\(found.stuck?.summary ?? "")")
    #expect(found.finished)
    #expect(found.states > 1000, "\(found.states) states")
  }

  @Test(
    "without a fence, or without the second look, one is lost", arguments: Wishes.allCases,
    Omission.allCases.filter { $0 != .nothing })
  func needed(wishes: Wishes, omission: Omission) {
    let found = search(WakeupRules(wishes, omission))
    #expect(found.stuck != nil, "\(found.states) states, none stuck")
  }
}
