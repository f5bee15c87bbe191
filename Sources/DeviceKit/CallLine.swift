// The wires of a queue beside its ring: the kick descriptor that wakes us, the call descriptor that wakes the driver, and
// the error descriptor that tells the front-end of a broken ring, all served through the thread's io_uring. On the queue's thread.

import CLinux
import Glibc
import HostIO

/// Polls one kick descriptor and writes one call descriptor and one error descriptor.
///
/// None can block the thread: the kick is a multishot poll that is never read (its counter may grow), the call a
/// write of which at most one is under way; a call that falls due meanwhile is made when that one has ended.
@safe @usableFromInline final class CallLine {
  // SAFETY: the ring and the constant of the thread's tools, used on that thread only.
  private let uring: UnsafeMutablePointer<IOUring>
  private let one: UnsafeMutablePointer<UInt64>
  private let seat: UInt16
  private let epoch: UInt16
  private let kickSlot: FileSlot
  private let callSlot: FileSlot
  private let errorSlot: FileSlot
  private var hasError = false
  private let counters: QueueCounters

  private(set) var hasKick = false
  private var hasCall = false
  /// Which descriptor a completion speaks of: the count of those put in so far.
  private var kickTurn: UInt16 = 0
  private var callTurn: UInt16 = 0
  private var callUnderWay = false
  private var callAgain = false

  init(place: RunnerPlace) {
    unsafe uring = unsafe place.tools.uring
    unsafe one = unsafe place.tools.one
    seat = place.seat
    epoch = place.epoch
    kickSlot = QueueThreadCore.kickSlot(place.seat)
    callSlot = QueueThreadCore.callSlot(place.seat)
    errorSlot = QueueThreadCore.errorSlot(place.seat)
    counters = place.counters
  }

  /// Puts a new kick descriptor in (nil: none, the ring is polled instead). Ours to keep only through the slot.
  func setKick(_ descriptor: Int32?) throws(HostError) {
    stopKick()
    unsafe try uring.pointee.register(descriptor ?? -1, at: kickSlot)
    if descriptor != nil {
      hasKick = true
      arm()
    }
  }

  /// Puts a new call descriptor in (nil: the driver polls), and signals it once where the ring runs already: a call
  /// meant for the old one may have been missed.
  func setCall(_ descriptor: Int32?, signal: Bool) throws(HostError) {
    callTurn &+= 1
    callUnderWay = false
    callAgain = false
    hasCall = descriptor != nil
    unsafe try uring.pointee.register(descriptor ?? -1, at: callSlot)
    if signal { call() }
  }

  /// Puts a new error descriptor in (nil: none).
  func setError(_ descriptor: Int32?) throws(HostError) {
    hasError = descriptor != nil
    unsafe try uring.pointee.register(descriptor ?? -1, at: errorSlot)
  }

  /// Tells the front-end that the ring is broken. Its answer to that is the front-end's affair: so is a write that fails.
  func reportError() {
    guard hasError else { return }
    // SAFETY: `one` stays as it is for the thread's life.
    unsafe uring.pointee.submit(
      .write, on: errorSlot, offset: 0, address: UInt(bitPattern: one), length: 8,
      token: Token(.ignored, seat: seat, epoch: epoch).raw)
  }

  /// Ends the polling and lets all descriptors go, once what was due to them is on its way: the driver still has to hear
  /// of the last request.
  func close() {
    stopKick()
    if callAgain {
      (callUnderWay, callAgain) = (false, false)
      call()
    }
    // What was prepared names the slots, not the files that are in them. A try more where the kernel was short of memory.
    for _ in 0..<100 where unsafe uring.pointee.hasUnsubmitted { unsafe uring.pointee.submit() }
    hasCall = false
    hasError = false
    // A slot that cannot be emptied keeps its file until it is filled again: nothing to do about it here.
    unsafe try? uring.pointee.register(-1, at: kickSlot)
    unsafe try? uring.pointee.register(-1, at: callSlot)
    unsafe try? uring.pointee.register(-1, at: errorSlot)
  }

  @usableFromInline func call() {
    guard hasCall else { return }
    if callUnderWay {
      callAgain = true
      return
    }
    callUnderWay = true
    counters.add(to: .calls)
    // SAFETY: `one` stays as it is for the thread's life.
    unsafe uring.pointee.submit(
      .write, on: callSlot, offset: 0, address: UInt(bitPattern: one), length: 8,
      token: Token(.call, seat: seat, epoch: epoch, head: callTurn).raw)
  }

  /// The write to the call descriptor has ended. One that failed (a closed pipe, say) is the front-end's loss.
  func called(_ event: IOUring.Event) {
    guard Token(raw: event.token).head == callTurn else { return }
    callUnderWay = false
    if callAgain {
      callAgain = false
      call()
    }
  }

  /// The kick descriptor became readable, or its poll ended.
  func kicked(_ event: IOUring.Event) {
    guard Token(raw: event.token).head == kickTurn, hasKick else { return }
    if event.result >= 0 { counters.add(to: .kicks) }
    // The kernel may end a multishot poll at any time (an overflow, say).
    if !event.more, event.result != -ECANCELED { event.result >= 0 ? arm() : (hasKick = false) }
  }

  private func arm() {
    unsafe uring.pointee.pollReadable(kickSlot, token: kickToken)
  }

  private var kickToken: UInt64 { Token(.kick, seat: seat, epoch: epoch, head: kickTurn).raw }

  private func stopKick() {
    guard hasKick else { return }
    hasKick = false
    unsafe uring.pointee.cancelPoll(
      target: kickToken, token: Token(.ignored, seat: seat, epoch: epoch).raw)
    kickTurn &+= 1
  }
}
