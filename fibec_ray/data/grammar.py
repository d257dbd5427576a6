"""The words of the embedded task: messages to a city assistant.

Slots: {place}, {name}, {time}, {thing} (a thing of the sentence's own class). Every ask has exactly one {time}.
Training and test sentences use different times, so no sentence is in both.
"""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """Sentences about one topic."""

    asks: tuple[str, ...]
    """requests; they decide the class"""
    remarks: tuple[str, ...]
    """statements about the topic that go before a request for something else"""
    things: tuple[str, ...]
    subjects: tuple[str, ...]
    """noun phrases that fit behind 'this is not about'"""


WEATHER = Topic(
    asks=(
        "Will it rain in {place} {time}?",
        "Do I need an umbrella if I walk through {place} {time}?",
        "How cold does it get in {place} {time}?",
        "Should I expect {thing} in {place} {time}?",
        "Is it warm enough to sit outside with {name} {time}?",
        "Tell me whether {thing} could reach {place} {time}.",
        "Can {name} leave the coat at home {time}?",
        "What should I wear in {place} {time}, a scarf or a T-shirt?",
        "Is the sky over {place} going to be clear {time}?",
        "Is there {thing} on the way to {place} {time}?",
    ),
    remarks=(
        "We had {thing} in {place} all day.",
        "{name} keeps talking about {thing}.",
        "It is freezing at {name}'s place.",
        "The clouds over {place} look dark.",
        "They promised {thing} on the news.",
    ),
    things=(
        "a thunderstorm", "fog", "strong wind", "snow", "a heat wave",
        "hail", "a cold front", "drizzle", "bright sunshine", "black ice",
    ),
    subjects=("the forecast", "the rain in {place}", "the temperature outside", "{thing}", "the storm warning"),
)  # fmt: skip

TRAVEL = Topic(
    asks=(
        "When does the next train leave for {place} {time}?",
        "How do I get to {place} {time} without a car?",
        "Is there a seat left for {name} on {thing} {time}?",
        "Which platform does {thing} to {place} use {time}?",
        "How long is the ride to {place} {time}?",
        "Can you reserve {thing} to {place} {time}?",
        "Where can {name} park near {place} {time}?",
        "Does {thing} still stop in {place} {time}?",
        "Is {name} going to make the connection in {place} {time}?",
        "Is the road to {place} closed {time}?",
    ),
    remarks=(
        "I am sitting in {thing} to {place}.",
        "{name} missed {thing} again.",
        "{name} is on the way to {place} with two suitcases.",
        "We drove past {place} and the traffic was slow.",
        "{name} lost a ticket for {thing}.",
    ),
    things=(
        "the night bus", "the ferry", "the tram", "the express train", "the airport shuttle",
        "the early flight", "the taxi", "the rental car", "the metro", "the coach",
    ),
    subjects=("the timetable", "the trip to {place}", "the tickets for {thing}", "{thing}", "the traffic near {place}"),
)  # fmt: skip

FOOD = Topic(
    asks=(
        "What can I cook for {name} {time} with {thing}?",
        "Find a table for two in {place} {time}.",
        "Which bakery in {place} is open {time}?",
        "How long does {thing} stay in the oven if guests come {time}?",
        "Order {thing} for {name} {time}.",
        "Is there a vegetarian menu in {place} {time}?",
        "What goes well with {thing} {time}?",
        "Can {name} eat {thing} {time} without nuts in it?",
        "Where do they serve {thing} in {place} {time}?",
        "Suggest a dessert for {name} {time}.",
    ),
    remarks=(
        "{name} just finished a plate of {thing}.",
        "The kitchen still smells of {thing}.",
        "We had {thing} in {place} yesterday.",
        "{name} is hungry and wants {thing}.",
        "There is {thing} left in the fridge.",
    ),
    things=(
        "lentil soup", "mushroom risotto", "grilled fish", "fresh pasta", "pumpkin curry",
        "tomato salad", "roast potatoes", "apple pie", "rice noodles", "goat cheese",
    ),
    subjects=("the recipe", "the restaurant in {place}", "the grocery list", "{thing}", "dinner with {name}"),
)  # fmt: skip

MUSIC = Topic(
    asks=(
        "Play {thing} for {name} {time}.",
        "Who is on stage in {place} {time}?",
        "Put {thing} on the playlist {time}.",
        "Which band is in {place} {time}?",
        "Turn the volume down {time} when {name} is asleep.",
        "Can {name} practise the violin {time}?",
        "Is the concert in {place} sold out {time}?",
        "Find out who sings {thing} in {place} {time}.",
        "Wake {name} with {thing} {time}.",
        "Does the choir in {place} rehearse {time}?",
    ),
    remarks=(
        "{name} has been humming {thing} all day.",
        "They play {thing} in every shop in {place}.",
        "{name} bought a new guitar in {place}.",
        "I cannot get {thing} out of my head.",
        "The loudspeaker at {name}'s place is broken.",
    ),
    things=(
        "a piano sonata", "some jazz", "the new album", "an old love song", "a string quartet",
        "the drum solo", "a lullaby", "a rock ballad", "the film score", "an opera aria",
    ),
    subjects=("the playlist", "the concert in {place}", "the lyrics", "{thing}", "the headphones of {name}"),
)  # fmt: skip

MONEY = Topic(
    asks=(
        "Transfer the rent to {name} {time}.",
        "What is left on my account {time}?",
        "How much do I owe {name} {time}?",
        "Pay {thing} {time}.",
        "Is {thing} due {time}?",
        "Can I still afford {thing} {time}?",
        "Remind me to split {thing} with {name} {time}.",
        "Move two hundred to my savings {time}.",
        "What is the exchange rate in {place} {time}?",
        "Is {name} going to get the refund {time}?",
    ),
    remarks=(
        "{name} forgot to pay {thing}.",
        "{name} opened an account at a bank in {place}.",
        "I found {thing} in the mail.",
        "{name} complains about the prices in {place}.",
        "{name} sold the old shares.",
    ),
    things=(
        "the electricity bill", "the insurance fee", "the loan instalment", "the tax bill", "the rent",
        "the credit card balance", "the invoice", "the deposit", "the subscription", "the parking fine",
    ),
    subjects=("the bank", "the prices in {place}", "my savings", "{thing}", "the salary of {name}"),
)  # fmt: skip

HEALTH = Topic(
    asks=(
        "Book a check-up for {name} {time}.",
        "Which pharmacy in {place} is open {time}?",
        "Should {name} stay in bed {time} with {thing}?",
        "Can I go for a run in {place} {time} with a sore knee?",
        "How many hours of sleep do I get {time}?",
        "Is {thing} a reason to see somebody {time}?",
        "Does the clinic in {place} take patients {time}?",
        "What helps against {thing} {time}?",
        "Remind {name} of the tablets {time}.",
        "Is it safe to exercise {time} with {thing}?",
    ),
    remarks=(
        "{name} stayed at home with {thing}.",
        "The waiting room of the doctor in {place} is full.",
        "{name} has been complaining of {thing}.",
        "The dentist in {place} was kind.",
        "{name} has to take pills for {thing}.",
    ),
    things=(
        "a fever", "back pain", "a sprained ankle", "hay fever", "a migraine",
        "a sore throat", "high blood pressure", "a toothache", "a bad cough", "dizziness",
    ),
    subjects=("the doctor", "the clinic in {place}", "the diet of {name}", "{thing}", "the prescription"),
)  # fmt: skip

TOPICS: dict[str, Topic] = {
    "weather": WEATHER,
    "travel": TRAVEL,
    "food": FOOD,
    "music": MUSIC,
    "money": MONEY,
    "health": HEALTH,
}

NEGATIONS = (
    "This is not about {subject}.",
    "I am not asking about {subject}.",
    "Never mind {subject}.",
    "Forget {subject}, that is settled.",
    "No, I do not mean {subject}.",
    "It has nothing to do with {subject}.",
)

OPENERS = ("", "", "", "Hello.", "Hi there.", "Quick question.", "One more thing.", "Good to have you here.")

PADDING = (
    "I hope this is not too much trouble.",
    "{name} asked me to check this for everybody.",
    "I am typing with one hand, so please excuse the spelling.",
    "We have been going back and forth on this for a while.",
    "My phone is nearly out of battery.",
    "{name} says that you always know such things.",
    "There is no hurry, but an answer would be nice.",
    "I promised {name} to find out.",
    "Sorry for the long message.",
    "Please keep the answer short.",
    "I have tried to look it up and found nothing.",
    "{name} and I cannot agree on it.",
    "If you are not sure, just say so.",
    "Last time you were right.",
)

PLACES = (
    "Lisbon", "Oslo", "Porto", "Ghent", "Turin", "Graz", "Bristol", "Malmo", "Krakow", "Lyon",
    "Dublin", "Basel", "Leipzig", "Tampere", "Seville", "Utrecht",
)  # fmt: skip

NAMES = (
    "Anna", "Omar", "Mei", "Lucas", "Priya", "Jonas", "Fatima", "Diego", "Ingrid", "Kofi",
    "Sara", "Tomas", "Yuki", "Elena", "Marek", "my sister",
)  # fmt: skip

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = (
    *(f"on {day} {part}" for day in _DAYS for part in ("morning", "afternoon", "evening")),
    "tonight", "tomorrow", "tomorrow night", "this evening", "this weekend", "next week", "later today",
    "in an hour", "in two days", "at noon", "at midnight",
)  # fmt: skip
