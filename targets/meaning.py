"""What an answer about a person is and is not, in the words that model cards and generated code carry."""

from __future__ import annotations

# Task to its meaning, for every task whose answer could be taken for a fact about a person.
MEANING = {
    "gender": "How a face looks to the people who labelled the training pictures, in two classes. It is no statement "
    "about a person's gender, and errors differ between groups of people.",
    "age": "The age a face seems to have. A person's age cannot be read from a face; errors of ten years are common, "
    "and larger for children and for old people. Not for deciding what someone may buy, see or do.",
    "beauty": "How the raters of one study scored pictures: their taste, their culture, the photograph. It says "
    "nothing about a person's worth. Not for ranking people.",
    "beauty_score": "A mean rating of pictures by a few raters, on that study's scale: their taste, their culture, the "
    "photograph. It says nothing about a person's worth. Not for ranking people.",
    "expression": "Which posed or labelled expression a face resembles. It is not what a person feels.",
    "expression8": "Which posed or labelled expression a face resembles, contempt among them. It is not what a person "
    "feels.",
    "identity": "How alike two faces look to the network. Identifying people needs their consent, and the law in many "
    "places asks for more.",
    "attributes": "Visible marks as the raters of the training pictures saw them. It is no medical finding.",
    "attributes40": "What the labellers of CelebA wrote down of pictures of celebrities, in their words. Several are "
    "opinions (attractive, young) or guesses (male); none is a fact about a person.",
}
