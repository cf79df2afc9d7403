"""The closed lists that the corpus draws from: what stands here is all that the reference model has ever read."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


NAMES = words("Ann Ben Cara Dan Eva Finn Gina Hugo Ida Jack Kate Leo Nora Otto Pia Ruth Sam Uma Vera Will Zoe")
CITIES = words("Rome Paris London Berlin Madrid Oslo Cairo Lima Tokyo Delhi Boston Dublin")
ANIMALS = words("dog cat horse bird fish frog duck goat sheep rabbit")
PLACES = words("park sea forest river garden market farm hill")
COLOURS = words("red blue green white black brown")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
GREETINGS = ("Hello", "Hi", "Good morning", "Good evening")
VERBS = words("call email visit find follow pay")
THINGS = ("the bank", "the doctor", "a friend", "the police", "my sister", "the office", "the school")

WORDS = words(
    """
    able acid aim air angle ant apple arch area arm army art aunt baby back bag ball band bar barn base
    basin basket bath beam bean bear beard bed bee bell belt bench berry bike bit boat body bolt bone book
    boot bottle bowl box boy brain brake branch brass bread brick bridge broom brush bucket bulb bus bush
    butter button cake camera camp candle canoe cap car card carpet cart castle cave chain chair chalk
    cheese chest chin circle clay clock cloth cloud coal coat coffee coin comb cook copper cord corn cotton
    cow crab cream crown cup curtain cushion dance dawn desk dish door drain drawer dress drop drum dust
    eagle ear earth egg elbow engine eye face fan farmer feather fence fern field finger fire flag flame
    floor flower fly foot fork fox frame fruit gate gift glass globe glove gold grain grape grass group
    guitar hair hammer hand hat heart honey hook horn house ice ink iron island jacket jam jar jewel juice
    kettle key king kite knee knife knot ladder lake lamp land leaf leg lemon lip list lock log lunch map
    mask meal melon metal milk mirror money moon mouth nail neck needle nest net noise nose nut oak oar
    ocean oil olive onion orange oven owl page paint paper parcel peach pear pen pencil pepper piano pig
    pillow pin pipe plane plant plate pocket poem pool pot potato powder pump purse queen rail rain ring
    road rock rod roof room root rope rose ruler sack sail salt sand screw seed shelf ship shirt shoe silk
    silver skin sky sleeve snake snow soap sock soup spade sponge spoon spring stamp star steam stem stone
    stove street sugar sun table tail tent thread throat thumb ticket tiger tin toe tongue tooth tower town
    toy train tray tree truck trunk tube turtle umber uncle valley vase vest violin voice wall watch water
    wax wheel whip wing winter wire wolf wood wool worm yard yarn year zebra zoo
    """
)
